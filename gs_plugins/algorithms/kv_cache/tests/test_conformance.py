"""What every algorithm that treats KV caches owes the line."""

import pytest

from gs_core.testing import CacheSuite
from gs_kv_cache import KVCache, Options


class TestKVCache(CacheSuite):
    @pytest.fixture
    def algorithm(self):
        return "kv_cache"


class TestBeforeTheRotation(CacheSuite):
    @pytest.fixture
    def algorithm(self):
        return KVCache(Options(before_rope=True))
