//! What can change while the proxy runs, and what it says of itself.

mod common;

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::{Client, Cluster, Proxy, Server, address, until};

#[test]
fn state_says_which_configuration_is_in_force_and_whether_it_can_serve() {
    let (first, mut second) = (Server::start(&[]), Server::start(&[]));
    let proxy = Proxy::start("split", &[first.addr()], "digest = \"one\"\n[times]\nconnect_ms = 300\n");
    until(5.0, "the master", || proxy.json("state")["ready"] == true);
    let mut c = proxy.client();
    for _ in 0..10 {
        c.ok(&["SET", "a", "1"]);
    }
    until(5.0, "a second to be over", || {
        proxy.json("state")["commands_per_second"] != 0 || {
            c.ok(&["SET", "a", "1"]);
            false
        }
    });
    let state = proxy.json("state");
    assert_eq!(state["mode"], "split");
    assert_eq!(state["config_digest"], "one");
    assert_eq!(state["listen"][0], proxy.addr);
    assert_eq!(state["clients"], 1);
    assert_eq!(state["servers"][0]["server"], first.addr());
    assert_eq!(state["servers"][0]["role"], "master");
    assert_eq!(state["servers"][0]["healthy"], true);
    assert!(state["commands"].as_u64().unwrap() >= 10);
    assert_eq!(state["commands"], state["commandstats"]["set"]["calls"]);
    let number = |name: &str| state[name].as_f64().unwrap();
    let set = 31.0;
    assert_eq!(number("input_bytes"), number("commands") * (set - 4.0));
    assert_eq!(number("output_bytes"), number("commands") * 5.0);
    assert!(number("input_kbps") > 0.0 && number("output_kbps") > 0.0);
    assert!(number("latency_max_ms") >= number("latency_mean_ms") && number("latency_mean_ms") > 0.0);
    assert!(number("memory") > 1e6 && number("connections_accepted") >= 1.0);
    assert!(state["cpu_seconds"].is_f64());

    // Another server: ready again when that one is known, and not before.
    let to_second = |text: String| text.replace(&first.addr(), &second.addr()).replace("\"one\"", "\"two\"");
    assert_eq!(proxy.change(to_second), "ok\n");
    assert_eq!(proxy.json("state")["config_digest"], "two");
    until(5.0, "the other server", || {
        let state = proxy.json("state");
        assert!(state["ready"] == false || state["servers"][0]["server"] == second.addr(), "{state}");
        state["ready"] == true
    });
    second.stop();
    until(5.0, "its death to be known", || proxy.json("state")["ready"] == false);
    second.again();
    until(5.0, "its return to be known", || proxy.json("state")["ready"] == true);
}

#[test]
fn a_cluster_is_ready_when_every_slot_has_a_master_that_answers() {
    let mut cluster = Cluster::start(2, false);
    let proxy = Proxy::start("cluster", &cluster.addrs(), "[times]\nrefresh_ms = 200\nconnect_ms = 300\n");
    until(5.0, "the masters", || proxy.json("state")["ready"] == true);
    cluster.nodes[1].stop();
    until(10.0, "a death to be known", || proxy.json("state")["ready"] == false);
    cluster.nodes[1].again();
    until(20.0, "its return to be known", || proxy.json("state")["ready"] == true);
    cluster.nodes[0].client().ok(&["CLUSTER", "DELSLOTS", "5"]);
    cluster.nodes[1].client().ok(&["CLUSTER", "DELSLOTS", "5"]);
    until(10.0, "a slot to be missed", || proxy.json("state")["ready"] == false);
}

#[test]
fn who_knows_nothing_of_a_slot_hides_it_from_nobody() {
    let cluster = Cluster::start(2, false);
    let proxy = Proxy::start("cluster", &cluster.addrs(), "[times]\nrefresh_ms = 5\n");
    until(5.0, "the masters", || proxy.json("state")["ready"] == true);
    let (mut c, mut other) = (proxy.client(), cluster.nodes[1].client());
    let refreshes = || proxy.json("state")["topology_refreshes"].as_u64().unwrap();
    let before = refreshes();
    while refreshes() < before + 50 {
        other.ask(&["CLUSTER", "DELSLOTS", "5"]); // the other one's; soon it is told again
        assert_eq!(proxy.json("state")["ready"], true);
        c.ok(&["SET", "460", "1"]);
    }
}

#[test]
fn addresses_come_and_go_with_a_reload() {
    let server = Server::start(&[]);
    let proxy = Proxy::start("split", &[server.addr()], "");
    let (old, new) = (proxy.addr.clone(), format!("{}:6379", address()));
    let mut c = proxy.client();
    c.ok(&["SET", "a", "1"]);
    let both = format!("listen = [{old:?}, {new:?}]");
    assert_eq!(proxy.change(|text| text.replace(&format!("listen = [{old:?}]"), &both)), "ok\n");
    let mut other = Client::new(&new);
    assert_eq!(other.text(&["GET", "a"]), "1");
    assert_eq!(c.text(&["GET", "a"]), "1");
    assert_ne!(c.int(&["CLIENT", "ID"]), other.int(&["CLIENT", "ID"]));

    // An address that cannot be had, a mode, nonsense: nothing changes.
    for (from, to) in [
        (new.as_str(), "192.0.2.1:6379"),
        (new.as_str(), "nowhere"),
        ("mode = \"split\"", "mode = \"cluster\""),
        ("mode =", "moat ="),
        ("mode =", "[tls]\ncert = \"/none\"\nkey = \"/none\"\n[x]\nmode ="),
    ] {
        let path = proxy.place.path().join("config.toml");
        let good = std::fs::read_to_string(&path).unwrap();
        let said = proxy.change(|text| text.replace(from, to));
        assert!(said.starts_with("error: ") && said.ends_with('\n') && said.lines().count() >= 1, "{to}: {said}");
        std::fs::write(&path, good).unwrap();
        assert_eq!(c.text(&["GET", "a"]), "1");
        assert_eq!(Client::new(&new).text(&["GET", "a"]), "1");
    }

    assert_eq!(proxy.change(|text| text.replace(&both, &format!("listen = [{new:?}]"))), "ok\n");
    assert!(c.try_ask(&["GET", "a"]).is_err());
    assert_eq!(other.text(&["GET", "a"]), "1");
    until(5.0, "the old address to be closed", || TcpStream::connect(&old).is_err());
    assert_eq!(proxy.json("state")["listen"], serde_json::json!([new]));
}

#[test]
fn limits_of_clients_change_with_a_reload() {
    let server = Server::start(&[]);
    let proxy = Proxy::start("split", &[server.addr()], "[limits]\nmaxclients = 100\n[times]\nidle_s = 0\n");
    let mut some: Vec<Client> = (0..3).map(|_| proxy.client()).collect();
    for c in &mut some {
        c.ok(&["SET", "a", "1"]);
    }
    assert_eq!(proxy.change(|text| text.replace("maxclients = 100", "maxclients = 3")), "ok\n");
    until(5.0, "old connections to be gone", || proxy.number("clients") == 3);
    assert!(proxy.client().receive().starts_with(b"-ERR max number of clients"));
    assert_eq!(proxy.json("state")["connections_rejected"], 1);
    assert_eq!(proxy.change(|text| text.replace("idle_s = 0", "idle_s = 1")), "ok\n");
    until(5.0, "idle clients to be cut", || proxy.number("clients") == 0);
}

#[test]
fn the_slow_log_names_the_client_and_not_its_password() {
    let server = Server::start(&[]);
    let more = "[slowlog]\nslower_than_us = 200000\nmax_len = 3\n";
    let proxy = Proxy::start("split", &[server.addr()], more);
    let mut c = proxy.client();
    c.ok(&["CLIENT", "SETNAME", "painter"]);
    let loops = "local t = redis.call('TIME')[1] * 1e6 + redis.call('TIME')[2]; \
                 while redis.call('TIME')[1] * 1e6 + redis.call('TIME')[2] < t + 300000 do end; return 1";
    assert_eq!(c.int(&["EVAL", loops, "0"]), 1);
    // One that waits because it wants to is not slow.
    assert_eq!(c.ask(&["BLPOP", "nothing", "0.3"]), b"*-1\r\n");
    let log = proxy.json("slowlog");
    assert_eq!(log.as_array().unwrap().len(), 1, "{log}");
    assert_eq!(log[0]["command"][0], "EVAL");
    assert!(log[0]["command"][1].as_str().unwrap().ends_with(" more bytes)"), "{log}");
    assert_eq!(log[0]["client"], c.stream.local_addr().unwrap().to_string());
    assert_eq!(log[0]["name"], "painter");
    assert!(log[0]["duration_us"].as_u64().unwrap() >= 300_000);
    assert!(log[0]["time"].as_u64().unwrap() > 1_700_000_000);
    let stats = &proxy.json("state")["commandstats"];
    assert!(stats["eval"]["max_usec"].as_u64().unwrap() >= 300_000 && stats["blpop"]["max_usec"] == 0, "{stats}");
    assert!(proxy.control("metrics").contains("cacheyard_proxy_usec_total{command=\"eval\"}"));

    assert_eq!(proxy.change(|text| text.replace("200000", "0")), "ok\n");
    c.ask(&["AUTH", "secret-word"]);
    c.ok(&["SET", "a", "1"]);
    c.ok(&["SET", "a", "2"]);
    let log = proxy.json("slowlog");
    let shown: Vec<String> = log.as_array().unwrap().iter().map(|e| e["command"].to_string()).collect();
    assert_eq!(shown, ["[\"SET\",\"a\",\"2\"]", "[\"SET\",\"a\",\"1\"]", "[\"AUTH\",\"(redacted)\"]"]);
    assert_eq!(proxy.change(|text| text.replace("max_len = 3", "max_len = 1")), "ok\n");
    assert_eq!(proxy.json("slowlog").as_array().unwrap().len(), 1);
    assert_eq!(proxy.change(|text| text.replace("slower_than_us = 0", "slower_than_us = -1")), "ok\n");
    c.ok(&["SET", "a", "3"]);
    assert_eq!(proxy.json("slowlog")[0]["command"][2], "2");
}

/// Whether `work`, which says how many bytes it moved, goes at this many megabits a second: never faster, and at
/// some time not slower, as a busy machine may be.
fn goes_at(limit: f64, mut work: impl FnMut() -> usize) {
    let mut seen = Vec::new();
    work();
    for _ in 0..10 {
        let (begun, mut bytes) = (Instant::now(), 0);
        while begun.elapsed() < Duration::from_secs(1) {
            bytes += work();
        }
        let part = bytes as f64 * 8e-6 / begun.elapsed().as_secs_f64() / limit;
        assert!(part < 1.1, "{part} of the limit");
        seen.push(part);
        if part > 0.9 {
            return;
        }
    }
    panic!("{seen:?} of the limit");
}

#[test]
fn bandwidth_is_what_the_limit_says_both_ways_and_changes_with_a_reload() {
    let server = Server::start(&[]);
    let proxy = Proxy::start("split", &[server.addr()], "[limits]\nbandwidth_mbit = 40\n");
    let mut c = proxy.client();
    let value = "x".repeat(50_000);
    let set = cacheyard_proxy::resp::request(&["SET", "v", &value]);
    goes_at(40.0, || {
        c.stream.write_all(&set).unwrap();
        set.len() + c.receive().len()
    });
    goes_at(40.0, || {
        c.send(&["GET", "v"]);
        20 + c.receive().len()
    });
    // Shared by two, each has something of it, and a value of any size is whole.
    let mut others = [proxy.client(), proxy.client()];
    let mut taken = [0, 0];
    goes_at(40.0, || {
        others.iter_mut().for_each(|other| other.send(&["GET", "v"]));
        let sizes = others.each_mut().map(|other| other.receive().len());
        taken = [taken[0] + sizes[0], taken[1] + sizes[1]];
        sizes.iter().sum::<usize>() + 40
    });
    assert_eq!(taken[0], taken[1]);
    c.ok(&["SET", "big", &"y".repeat(3 << 20)]);
    assert_eq!(c.ask(&["GET", "big"]).len(), (3 << 20) + 12);
    assert_eq!(proxy.change(|text| text.replace("bandwidth_mbit = 40", "bandwidth_mbit = 0")), "ok\n");
    let begun = Instant::now();
    for _ in 0..20 {
        c.ask(&["GET", "big"]);
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?} for 500 Mbit", begun.elapsed());
}

#[test]
fn an_idle_process_costs_nothing() {
    let server = Server::start(&[]);
    let proxy = Proxy::start("split", &[server.addr()], "[limits]\nbandwidth_mbit = 100\n");
    let clients: Vec<Client> = (0..50).map(|_| proxy.client()).collect();
    until(5.0, "the clients", || proxy.number("clients") == 50);
    let cpu = || proxy.json("state")["cpu_seconds"].as_f64().unwrap();
    let before = cpu();
    std::thread::sleep(Duration::from_secs(3));
    let used = cpu() - before;
    assert!(used < 0.06, "{used} s of 3 s");
    drop(clients);
}
