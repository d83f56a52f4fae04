<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

use KestrelStack\Queue\Envelope;
use KestrelStack\Queue\Text;

/**
 * Which function does which job.
 *
 * A name that comes from a queue is only ever looked up here; it never becomes the name of a class or a file.
 */
final class Registry
{
    /** @var array<string, callable|class-string> */
    private array $jobs = [];
    /** @var list<\Closure> */
    private array $around = [];

    /**
     * Register what is called with (array $data, Context $context) for the jobs called $name: a function, or
     * the name of a class with __invoke, of which every job gets a new object.
     *
     * @param callable|class-string $function
     * @throws \InvalidArgumentException for a name that is illegal or taken, or for what cannot be called
     */
    public function job(string $name, callable|string $function): static
    {
        if (!Envelope::isJobName($name)) {
            throw new \InvalidArgumentException(
                Text::quote($name) . " is not a job name: a letter, then letters, digits and '_', at most 100.",
            );
        }
        if (isset($this->jobs[$name])) {
            throw new \InvalidArgumentException("The job $name is registered twice.");
        }
        if (is_callable($function)) {
            if ((new \ReflectionFunction(\Closure::fromCallable($function)))->isGenerator()) {
                throw new \InvalidArgumentException(
                    "The job $name must be a plain function; one with yield would not run.",
                );
            }
        } elseif (!class_exists($function) || !method_exists($function, '__invoke')) {
            throw new \InvalidArgumentException(
                "The job $name must be a function or a class with __invoke, not " . Text::quote($function) . '.',
            );
        }
        $this->jobs[$name] = $function;
        return $this;
    }

    /**
     * Register what is set up before every job and always cleared after it, such as the tenant's database.
     *
     * It is called as $function(Context $context, callable $next) and calls $next() once. Of several, the first is
     * the outermost. A job that has thrown has failed, also when this catches what it threw. When clearing fails, the
     * process that ran the job is replaced.
     *
     * @param callable(Context, callable(): void): void $function
     */
    public function around(callable $function): static
    {
        $this->around[] = \Closure::fromCallable($function);
        return $this;
    }

    /** Return the function for $name, or null. */
    public function get(string $name): ?callable
    {
        $found = $this->jobs[$name] ?? null;
        return $found === null || is_callable($found) ? $found : new $found();
    }

    /**
     * Call $work inside of everything that was registered to be around jobs.
     *
     * @param \Closure(): void $work
     * @throws \Throwable whatever is thrown around $work
     */
    public function within(Context $context, \Closure $work): void
    {
        foreach (array_reverse($this->around) as $around) {
            $work = static function () use ($around, $context, $work): void {
                $around($context, $work);
            };
        }
        $work();
    }

    /**
     * The registered names, sorted.
     *
     * @return list<string>
     */
    public function names(): array
    {
        $names = array_map(strval(...), array_keys($this->jobs));
        sort($names, SORT_STRING);
        return $names;
    }
}
