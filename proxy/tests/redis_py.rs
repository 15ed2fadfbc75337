//! The same with somebody else's client: redis-py, if the project's environment is there.

mod common;

use std::path::Path;
use std::process::Command;

use common::{Cluster, Proxy, Server};

fn run(proxy: &Proxy) {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin/python");
    if !python.exists() {
        return println!("no redis-py here");
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/redis_py.py");
    let host = proxy.addr.split(':').next().unwrap();
    let output = Command::new(python).arg(script).arg(host).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn redis_py_is_content_in_front_of_a_cluster() {
    let cluster = Cluster::start(3, false);
    run(&Proxy::start("cluster", &cluster.addrs(), ""));
}

#[test]
fn redis_py_is_content_with_split_servers() {
    let server = Server::start(&[]);
    run(&Proxy::start("split", &[server.addr()], ""));
}
