import pytest

from kestrel_stack.consumer import Registry


def test_a_registered_function_is_found_by_its_name_and_still_callable():
    registry = Registry()

    @registry.job("HelloWorld")
    def hello(data, context):
        return data

    assert registry.get("HelloWorld") is hello
    assert hello(1, None) == 1
    assert registry.names == ["HelloWorld"]


def test_an_unknown_name_finds_nothing():
    assert Registry().get("os.system") is None


@pytest.mark.parametrize("name", ["", "a b", "os.system", "../x", "1a", "A\n", "x" * 101, None])
def test_an_illegal_name_cannot_be_registered(name):
    with pytest.raises(ValueError, match="not a job name"):
        Registry().job(name)


def test_a_name_cannot_be_registered_twice():
    registry = Registry()
    registry.job("A")(print)
    with pytest.raises(ValueError, match="A is registered twice"):
        registry.job("A")


async def coroutine(data, context): ...


def generator(data, context):
    yield


async def async_generator(data, context):
    yield


@pytest.mark.parametrize("function", [coroutine, generator, async_generator, 5])
def test_what_would_not_run_when_called_cannot_be_registered(function):
    with pytest.raises(TypeError, match="must be a"):
        Registry().job("A")(function)
