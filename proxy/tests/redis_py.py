"""A client that knows nothing of the proxy: redis-py's own ways, in both protocols. argv: its host."""

import sys
import threading
import time

import redis

for protocol in (2, 3):
    r = redis.Redis(
        host=sys.argv[1], port=6379, protocol=protocol, decode_responses=True, client_name="tester"
    )
    r.flushall()
    assert r.set("a", "1") is True
    assert r.client_getname() == "tester"
    r.mset({f"k{i}": i for i in range(100)})
    assert r.mget([f"k{i}" for i in range(100)]) == [str(i) for i in range(100)]
    assert sorted(r.scan_iter(count=7)) == sorted(r.keys())
    assert r.dbsize() == 101
    assert r.delete(*[f"k{i}" for i in range(100)]) == 100
    r.hset("h", mapping={"x": 1, "y": 2})
    assert r.hgetall("h") == {"x": "1", "y": "2"}
    r.sadd("s1", 1, 2)
    r.sadd("s2", 2, 3)
    assert r.sunion("s1", "s2") == {"1", "2", "3"}
    r.zadd("z", {"a": 1.5})
    assert r.zrange("z", 0, -1, withscores=True)[0][1] == 1.5
    with r.pipeline(transaction=True) as p:
        assert p.incr("{t}n").incr("{t}n").get("{t}n").execute() == [1, 2, "2"]
    with r.pipeline(transaction=False) as p:
        for i in range(1000):
            p.set(f"p{i}", i)
        assert all(p.execute())

    def increment(p: redis.client.Pipeline) -> None:
        n = int(p.get("{t}n"))
        p.multi()
        p.set("{t}n", n + 1)

    threads = [threading.Thread(target=lambda: r.transaction(increment, "{t}n")) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert r.get("{t}n") == "10", r.get("{t}n")
    with r.lock("lock", timeout=5):
        assert r.lock("lock", blocking=False).acquire(blocking=False) is False
    script = r.register_script("return redis.call('incr', KEYS[1])")
    assert script(keys=["counter"]) == 1
    pubsub = r.pubsub()
    pubsub.subscribe("news")
    assert pubsub.get_message(timeout=2)["type"] == "subscribe"
    r.publish("news", "hello")
    assert pubsub.get_message(timeout=2)["data"] == "hello"
    pubsub.close()
    threading.Timer(0.2, lambda: r.rpush("queue", "job")).start()
    assert list(r.blpop("queue", timeout=3)) == ["queue", "job"]
    r.xadd("stream", {"f": "v"})
    r.xgroup_create("stream", "g", "0")
    assert r.xreadgroup("g", "me", {"stream": ">"}, count=1)
    assert r.xread({"stream": "$"}, block=50) in ([], {}, None)
    assert r.info()["redis_mode"] == "standalone"
    assert r.info("keyspace")["db0"]["keys"] == r.dbsize()
    assert any(c["name"] == "tester" for c in r.client_list())
    assert r.slowlog_len() >= 0
    assert isinstance(r.slowlog_get(), list)
    assert r.config_get("maxmemory") == {"maxmemory": "0"}
    with r.monitor() as m:
        time.sleep(0.05)
        r.get("watched-key")
        assert any("watched-key" in m.next_command()["command"] for _ in range(3))
    try:
        r.bgsave()
    except redis.ResponseError as error:
        assert "unknown command" in str(error)
    else:
        raise AssertionError("BGSAVE was not refused")
print("fine")
