package net.lag.kestrel;

import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.net.URL;
import java.net.URLClassLoader;
import java.util.ArrayList;
import java.util.Collections;
import java.util.Enumeration;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.zip.ZipEntry;
import java.util.zip.ZipFile;

/**
 * A STAND-IN for Kestrel's main class, for tests: it takes Kestrel's arguments and demands to be launched as the real
 * one must be, on whatever Java this is. What serves is a Python program under libs/.
 */
public final class Kestrel {
    private static final Pattern JAR = Pattern.compile("kestrel_[0-9.]+-([0-9][0-9.]*)\\.jar");

    private Kestrel() {}

    public static void main(String[] arguments) throws Exception {
        List<String> problems = new ArrayList<>();
        File jar = jarOfThisClass();
        Matcher named = JAR.matcher(jar.getName());
        if (!named.matches()) {
            problems.add("the jar is called " + jar.getName() + ", not kestrel_SCALA-VERSION.jar");
        }
        checkLoader(jar, problems);
        checkStubs(problems);
        if (!problems.isEmpty()) {
            for (String problem : problems) {
                System.err.println("stand-in: the real Kestrel could not compile its configuration: " + problem);
            }
            System.exit(1);
        }
        List<String> command = new ArrayList<>();
        Collections.addAll(command, "python3", "-I", new File(jar.getParentFile(), "libs/standin.pyz").getPath());
        command.add(named.group(1));
        Collections.addAll(command, arguments);
        System.exit(run(command));
    }

    private static File jarOfThisClass() throws Exception {
        return new File(Kestrel.class.getProtectionDomain().getCodeSource().getLocation().toURI());
    }

    /** Kestrel's compiler casts the context loader to URLClassLoader, and takes the jar from it and from the property. */
    private static void checkLoader(File jar, List<String> problems) throws Exception {
        ClassLoader loader = Thread.currentThread().getContextClassLoader();
        if (!(loader instanceof URLClassLoader)) {
            problems.add("the context class loader is " + loader + ", no URLClassLoader");
        } else {
            URL[] urls = ((URLClassLoader) loader).getURLs();
            if (urls.length != 1 || !new File(urls[0].toURI()).equals(jar)) {
                problems.add("the context class loader has not this jar alone");
            }
            if (Kestrel.class.getClassLoader() != loader) {
                problems.add("this class was loaded by another loader");
            }
        }
        String path = System.getProperty("java.class.path", "");
        if (!new File(path).equals(jar)) {
            problems.add("java.class.path is " + path + ", not " + jar);
        }
    }

    /** It reads the Java API from class files of Java 8 at most, without constants that came after Java 6. */
    private static void checkStubs(List<String> problems) {
        String path = System.getProperty("sun.boot.class.path");
        if (path == null) {
            problems.add("sun.boot.class.path is not set");
            return;
        }
        int classes = 0;
        try (ZipFile stubs = new ZipFile(path)) {
            for (String needed : new String[] {"java/lang/Object", "java/lang/String", "java/util/Map"}) {
                if (stubs.getEntry(needed + ".class") == null) {
                    problems.add(path + " has no " + needed);
                }
            }
            for (Enumeration<? extends ZipEntry> all = stubs.entries(); all.hasMoreElements(); ) {
                ZipEntry entry = all.nextElement();
                if (entry.getName().endsWith(".class")) {
                    classes++;
                    try (InputStream content = stubs.getInputStream(entry)) {
                        String why = unreadable(content.readAllBytes());
                        if (why != null) {
                            problems.add(path + ": " + entry.getName() + ": " + why);
                            return;
                        }
                    }
                }
            }
        } catch (IOException error) {
            problems.add(path + ": " + error);
        }
        if (classes < 3000) {
            problems.add(path + " has " + classes + " classes, which is not the Java API");
        }
    }

    private static String unreadable(byte[] file) {
        if (file.length < 10 || number(file, 0) != 0xCAFE || number(file, 2) != 0xBABE) {
            return "no class file";
        }
        if (number(file, 6) > 52) {
            return "class file version " + number(file, 6);
        }
        int at = 10;
        for (int slot = 1; slot < number(file, 8); slot++) {
            int tag = file[at];
            switch (tag) {
                case 1:
                    at += 3 + number(file, at + 1);
                    break;
                case 7:
                case 8:
                    at += 3;
                    break;
                case 5:
                case 6:
                    at += 9;
                    slot++;
                    break;
                case 3:
                case 4:
                case 9:
                case 10:
                case 11:
                case 12:
                    at += 5;
                    break;
                default:
                    return "bad constant pool tag " + tag;
            }
        }
        return null;
    }

    private static int number(byte[] file, int at) {
        return (file[at] & 0xFF) << 8 | file[at + 1] & 0xFF;
    }

    /** Run the program that serves; HUP goes to it as a line, and it ends with this process, however that ends. */
    private static int run(List<String> command) throws Exception {
        Process process = new ProcessBuilder(command)
                .redirectOutput(ProcessBuilder.Redirect.INHERIT)
                .redirectError(ProcessBuilder.Redirect.INHERIT)
                .start();
        sun.misc.Signal.handle(new sun.misc.Signal("HUP"), signal -> {
            try {
                process.getOutputStream().write("reopen\n".getBytes("US-ASCII"));
                process.getOutputStream().flush();
            } catch (IOException gone) {
                System.err.println("stand-in: cannot pass on SIGHUP: " + gone);
            }
        });
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            process.destroy();
            try {
                process.waitFor(10, TimeUnit.SECONDS);
            } catch (InterruptedException ignored) {
                Thread.currentThread().interrupt();
            }
        }));
        return process.waitFor();
    }
}
