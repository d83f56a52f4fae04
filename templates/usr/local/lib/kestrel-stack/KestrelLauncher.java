import java.io.File;
import java.net.URL;
import java.net.URLClassLoader;
import java.util.Arrays;

/**
 * Starts a released Kestrel on Java 11 and later: {@code java -cp FOLDER KestrelLauncher JAR ARGUMENTS...}.
 *
 * <p>Kestrel compiles its configuration with a Scala compiler that casts the application's class loader to
 * URLClassLoader, which it is no longer since Java 9, and that takes the jars it compiles against from that loader
 * and from java.class.path. So the jar gets a loader of that kind, and the property is what {@code java -jar} would
 * have made it. The parent is the platform's loader: nothing of ours is in Kestrel's sight.
 */
public final class KestrelLauncher {
    private KestrelLauncher() {}

    public static void main(String[] arguments) throws Throwable {
        File jar = new File(arguments[0]);
        System.setProperty("java.class.path", jar.getPath());
        URLClassLoader loader =
                new URLClassLoader(new URL[] {jar.toURI().toURL()}, ClassLoader.getPlatformClassLoader());
        Thread.currentThread().setContextClassLoader(loader);
        Object rest = Arrays.copyOfRange(arguments, 1, arguments.length);
        try {
            loader.loadClass("net.lag.kestrel.Kestrel").getMethod("main", String[].class).invoke(null, rest);
        } catch (java.lang.reflect.InvocationTargetException wrapped) {
            throw wrapped.getCause();
        }
    }
}
