//! The socket by which the proxy is run, and what noise does to it.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use common::{Proxy, Server};

#[test]
fn state_and_metrics_tell_and_reload_changes() {
    let (first, second) = (Server::start(&[]), Server::start(&[]));
    let proxy = Proxy::start("split", &[first.addr()], "");
    let mut c = proxy.client();
    c.ok(&["SET", "a", "first"]);
    second.client().ok(&["SET", "a", "second"]);
    let state = proxy.state();
    assert!(state.contains("\"set\":1"), "{state}");
    assert!(state.contains(&format!("\"server\":\"{}\",\"role\":\"master\"", first.addr())), "{state}");
    assert!(proxy.control("metrics").contains("cacheyard_proxy_calls_total{command=\"set\"} 1"));
    assert!(proxy.control("GET /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.0 200"));
    assert!(proxy.control("dance").starts_with("error"));

    let config = proxy.place.path().join("config.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, "nonsense").unwrap();
    assert!(proxy.control("reload").starts_with("error"));
    assert_eq!(c.text(&["GET", "a"]), "first");
    std::fs::write(&config, text.replace(&first.addr(), &second.addr()) + "refuse = [\"keys\", \"config\"]\n").unwrap();
    assert_eq!(proxy.control("reload"), "ok\n");
    common::until(5.0, "the other server", || c.text(&["GET", "a"]) == "second");
    assert!(c.show(&["KEYS", "*"]).starts_with("-ERR unknown command"));
    assert!(c.show(&["CONFIG", "GET", "*"]).starts_with("-ERR unknown"));
}

#[test]
fn noise_harms_nobody_else() {
    let server = Server::start(&[]);
    let proxy = Proxy::start("split", &[server.addr()], "");
    let mut c = proxy.client();
    c.ok(&["SET", "a", "1"]);
    let mut seed = 1u64;
    let pieces: [&[u8]; 12] = [
        b"*",
        b"$",
        b"\r\n",
        b"*1\r\n",
        b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n",
        b"*-1\r\n",
        b"$5\r\nHELLO\r\n",
        b"\0\xff",
        b"*3\r\n$4\r\nEVAL\r\n$0\r\n\r\n$2\r\n-1\r\n",
        b"MULTI\r\nEXEC\r\n",
        b"SUBSCRIBE x\r\nUNSUBSCRIBE\r\n",
        b"*1\r\n$4\r\nSCAN\r\nSCAN x\r\nOBJECT\r\nXREAD STREAMS a\r\nSORT\r\nCLIENT KILL\r\nCLIENT\r\nHELLO 3 AUTH\r\n",
    ];
    for _ in 0..200 {
        let mut noisy = TcpStream::connect(&proxy.addr).unwrap();
        noisy.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        for _ in 0..20 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            if noisy.write_all(pieces[(seed >> 33) as usize % pieces.len()]).is_err() {
                break;
            }
        }
        let _ = noisy.read(&mut [0; 1024]);
        assert_eq!(c.text(&["GET", "a"]), "1");
    }
}
