//! The same with a client library of yet another language: redis-rs.

mod common;

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use common::{Cluster, Proxy, Server};
use redis::streams::StreamReadReply;
use redis::{Client, Commands, Connection, RedisResult, Script, Value, cmd, pipe};

fn connect(proxy: &Proxy, query: &str) -> Connection {
    let connection = Client::open(format!("redis://{}/{query}", proxy.addr)).unwrap().get_connection().unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    connection
}

/// What an application does, all in all.
fn everything(proxy: &Proxy, query: &str) {
    let mut c = connect(proxy, query);
    cmd("FLUSHALL").exec(&mut c).unwrap();

    let _: () = c.set("name", "value").unwrap();
    assert_eq!(c.get::<_, String>("name").unwrap(), "value");
    assert_eq!(c.get::<_, Option<String>>("none").unwrap(), None);
    let _: () = c.hset_multiple("h", &[("a", 1), ("b", 2)]).unwrap();
    assert_eq!(c.hgetall::<_, HashMap<String, i32>>("h").unwrap(), HashMap::from([("a".into(), 1), ("b".into(), 2)]));
    let _: () = c.sadd("s", &["x", "y"]).unwrap();
    assert_eq!(c.smembers::<_, HashSet<String>>("s").unwrap(), HashSet::from(["x".into(), "y".into()]));
    let _: () = c.zadd_multiple("z", &[(1.5, "m"), (2.5, "n")]).unwrap();
    let scores: Vec<(String, f64)> = c.zrange_withscores("z", 0, -1).unwrap();
    assert_eq!(scores, [("m".into(), 1.5), ("n".into(), 2.5)]);
    let wrong: RedisResult<i32> = c.lpush("name", 1);
    assert_eq!(wrong.unwrap_err().code(), Some("WRONGTYPE"));

    // Several keys, wherever they are.
    let _: () = c.mset(&[("k1", 1), ("k2", 2), ("k3", 3)]).unwrap();
    assert_eq!(c.mget::<_, Vec<Option<i32>>>(&["k1", "none", "k3"]).unwrap(), [Some(1), None, Some(3)]);
    assert_eq!(c.del::<_, i32>(&["k1", "k2", "k3", "none"]).unwrap(), 3);

    let mut many = pipe();
    for i in 0..1000 {
        many.set(format!("p{i}"), i).ignore().get(format!("p{i}"));
    }
    assert_eq!(many.query::<Vec<i32>>(&mut c).unwrap(), (0..1000).collect::<Vec<i32>>());
    let keys: HashSet<String> = c.scan_match::<_, String>("p*").unwrap().map(Result::unwrap).collect();
    assert_eq!(keys.len(), 1000);
    let fields: HashMap<String, i32> = c.hscan("h").unwrap().map(Result::unwrap).collect();
    assert_eq!(fields.len(), 2);

    // Transactions: one that succeeds, and one that is repeated because somebody was faster.
    let both: (i32, i32) = pipe().atomic().set("{t}n", 40).ignore().incr("{t}n", 2).get("{t}n").query(&mut c).unwrap();
    assert_eq!(both, (42, 42));
    let mut turns = 0;
    let mut other = connect(proxy, query);
    let done: (i32,) = redis::transaction(&mut c, &["{t}n"], |c, pipe| {
        turns += 1;
        let n: i32 = c.get("{t}n")?;
        if turns == 1 {
            other.set::<_, _, ()>("{t}n", 100)?;
        }
        pipe.set("{t}n", n + 1).ignore().get("{t}n").query(c)
    })
    .unwrap();
    assert_eq!((turns, done), (2, (101,)));

    let script = Script::new("return {KEYS[1], ARGV[1], redis.call('get', KEYS[1])}");
    let said: (String, i32, i32) = script.key("{t}n").arg(7).invoke(&mut c).unwrap();
    assert_eq!(said, ("{t}n".into(), 7, 101));

    // Somebody waits, and is given what he waits for.
    let waiting = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| connect(proxy, query).blpop::<_, (String, String)>("queue", 20.0));
        std::thread::sleep(Duration::from_millis(100));
        let _: () = c.rpush("queue", "job").unwrap();
        waiting.join().unwrap().unwrap()
    });
    assert_eq!(waiting, ("queue".into(), "job".into()));
    let begun = Instant::now();
    assert_eq!(c.blpop::<_, Option<(String, String)>>("queue", 0.3).unwrap(), None);
    assert!(begun.elapsed() >= Duration::from_millis(300));

    let id: String = c.xadd("stream", "*", &[("f", "v")]).unwrap();
    let read: StreamReadReply = c.xread(&["stream"], &["0"]).unwrap();
    assert_eq!((read.keys.len(), &read.keys[0].ids[0].id), (1, &id));

    let mut listener = connect(proxy, query);
    let mut news = listener.as_pubsub();
    news.subscribe("news").unwrap();
    news.psubscribe("p*").unwrap();
    news.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // One after the other: in a cluster, channels of two shards may overtake each other.
    for (channel, text) in [("news", "one"), ("papers", "two")] {
        let _: i32 = c.publish(channel, text).unwrap();
        let message = news.get_message().unwrap();
        assert_eq!((message.get_channel_name(), &message.get_payload::<String>().unwrap()[..]), (channel, text));
    }

    let map = cmd("HGETALL").arg("h").query::<Value>(&mut c).unwrap();
    assert_eq!(matches!(map, Value::Map(_)), query.contains("resp3"), "{map:?}");
}

#[test]
fn redis_rs_is_content_in_front_of_a_cluster() {
    let cluster = Cluster::start(3, false);
    let proxy = Proxy::start("cluster", &cluster.addrs(), "");
    everything(&proxy, "");
    everything(&proxy, "?protocol=resp3");
}

#[test]
fn redis_rs_is_content_with_split_servers() {
    let master = Server::start(&[]);
    let replica = Server::start(&["--replicaof", &format!("{} 6379", master.host)]);
    common::until(20.0, "replication", || replica.is_replicating());
    // Whoever writes and reads at once wants to read what was written.
    let proxy = Proxy::start("split", &[master.addr(), replica.addr()], "read_own_writes = true\n");
    everything(&proxy, "");
    everything(&proxy, "3?protocol=resp3");
}
