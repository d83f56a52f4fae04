"""Visitors of the demo, on an event loop with a server that never answers."""

import asyncio

from kestrel_stack.demo.visitors import DOUBLE_CLICK_AFTER, WAYS, Visitors


def test_who_is_cancelled_leaves_no_visitor_behind_and_none_comes_later():
    async def run():
        hanging = asyncio.Event()

        async def hang(_reader, writer):
            await hanging.wait()
            writer.close()

        server = await asyncio.start_server(hang, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        visitors = Visitors(dict.fromkeys(WAYS, port), rate=10, patience=30)
        coming = asyncio.create_task(visitors.come(60))
        while visitors.orders == 0:
            await asyncio.sleep(0)
        # The second click of the first order is still to come.
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)
        assert coming.cancelled()
        assert visitors.waiting == 0
        await asyncio.sleep(2 * DOUBLE_CLICK_AFTER)
        assert visitors.waiting == 0
        hanging.set()
        server.close()

    asyncio.run(run())
