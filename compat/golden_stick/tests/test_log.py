"""`logger` takes what scripts hand to `print`."""

import logging

from gs_compat.log import logger


def test_flush_is_taken_and_says_nothing(caplog):
    logger.set_level(logging.DEBUG)
    logger.info("quantized %d layers", 3, flush=True)
    logger.warning("slow", flush=False)
    logger.debug("detail")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "quantized 3 layers"),
        ("WARNING", "slow"),
        ("DEBUG", "detail"),
    ]
