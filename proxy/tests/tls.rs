//! TLS towards clients: who speaks it is served, and it is switched while the proxy runs.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use cacheyard_proxy::resp::{self, Replies};
use common::{Proxy, Server, until};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};

/// A key and a certificate for the proxy's address.
fn certificate(place: &Path, name: &str, host: &str) -> [PathBuf; 2] {
    let files = [place.join(format!("{name}.crt")), place.join(format!("{name}.key"))];
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=proxy", "-addext", &format!("subjectAltName=IP:{host}")])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-out")
        .arg(&files[0])
        .arg("-keyout")
        .arg(&files[1])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    files
}

struct Client(StreamOwned<ClientConnection, TcpStream>);

impl Client {
    fn new(addr: &str, trusted: &Path, versions: &[&'static SupportedProtocolVersion]) -> Client {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(trusted).unwrap()).unwrap();
        let config =
            ClientConfig::builder_with_protocol_versions(versions).with_root_certificates(roots).with_no_client_auth();
        let host = addr.split(':').next().unwrap().to_string();
        let state = ClientConnection::new(Arc::new(config), ServerName::try_from(host).unwrap()).unwrap();
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Client(StreamOwned::new(state, stream))
    }

    fn try_ask(&mut self, words: &[&str]) -> std::io::Result<Vec<u8>> {
        self.0.write_all(&resp::request(words))?;
        self.receive()
    }

    fn receive(&mut self) -> std::io::Result<Vec<u8>> {
        let (mut scan, mut out, mut piece) = (Replies::default(), Vec::new(), vec![0; 64 * 1024]);
        loop {
            let n = self.0.read(&mut piece)?;
            if n == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let (used, end) = scan.feed(&piece[..n]).map_err(|_| std::io::ErrorKind::InvalidData)?;
            assert_eq!(used, n);
            out.extend_from_slice(&piece[..n]);
            if end {
                return Ok(out);
            }
        }
    }

    fn ask(&mut self, words: &[&str]) -> String {
        self.try_ask(words).unwrap().escape_ascii().to_string()
    }
}

fn table(files: &[PathBuf; 2]) -> String {
    format!("[tls]\ncert = \"{}\"\nkey = \"{}\"\n", files[0].display(), files[1].display())
}

const ALL: &[&SupportedProtocolVersion] = rustls::ALL_VERSIONS;

#[test]
fn tls_is_switched_on_and_off_and_to_another_certificate_while_it_runs() {
    let server = Server::start(&[]);
    let proxy = Proxy::start("split", &[server.addr()], "");
    let place = proxy.place.path();
    let host = proxy.addr.split(':').next().unwrap();
    let (first, second) = (certificate(place, "first", host), certificate(place, "second", host));
    let mut plain = proxy.client();
    plain.ok(&["SET", "a", "1"]);

    // On: those without it are closed, new ones speak it, in both versions.
    assert_eq!(proxy.change(|text| text + &table(&first)), "ok\n");
    assert!(plain.try_ask(&["GET", "a"]).is_err());
    let versions = [&rustls::version::TLS12, &rustls::version::TLS13];
    for version in versions {
        let mut c = Client::new(&proxy.addr, &first[0], &[version]);
        assert_eq!(c.ask(&["GET", "a"]), "$1\\r\\n1\\r\\n");
        assert_eq!(c.0.conn.protocol_version(), Some(version.version));
    }
    assert_eq!(proxy.json("state")["tls"], true);
    // One who speaks it not is told nothing and hurts nobody.
    assert!(proxy.client().try_ask(&["GET", "a"]).is_err());
    // What belongs to somebody else's client speaks it too.
    let said = Command::new("redis-cli")
        .args(["-h", host, "-p", "6379", "--tls", "--cacert"])
        .arg(&first[0])
        .args(["SET", "b", "2"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout), "OK\n", "{}", String::from_utf8_lossy(&said.stderr));

    // Another certificate: who is in stays.
    let mut old = Client::new(&proxy.addr, &first[0], ALL);
    assert_eq!(old.ask(&["GET", "b"]), "$1\\r\\n2\\r\\n");
    let other = |text: String| text.replace(&table(&first), &table(&second));
    assert_eq!(proxy.change(other), "ok\n");
    assert_eq!(old.ask(&["GET", "b"]), "$1\\r\\n2\\r\\n");
    assert!(Client::new(&proxy.addr, &first[0], ALL).try_ask(&["PING"]).is_err());
    assert_eq!(Client::new(&proxy.addr, &second[0], ALL).ask(&["PING"]), "+PONG\\r\\n");
    // One that does not belong to its key is refused.
    let mixed = [first[0].clone(), second[1].clone()];
    assert!(proxy.change(|text| text.replace(&table(&second), &table(&mixed))).starts_with("error: tls"));
    assert_eq!(old.ask(&["GET", "b"]), "$1\\r\\n2\\r\\n");
    assert_eq!(proxy.change(|text| text.replace(&table(&mixed), &table(&second))), "ok\n");

    // Off again: the other way round.
    assert_eq!(proxy.change(|text| text.replace(&table(&second), "")), "ok\n");
    assert!(old.try_ask(&["GET", "b"]).is_err());
    let mut plain = proxy.client();
    assert_eq!(plain.text(&["GET", "b"]), "2");
    // On, but those that are in may stay.
    let keep = table(&first) + "close_others = false\n";
    assert_eq!(proxy.change(|text| text + &keep), "ok\n");
    assert_eq!(plain.text(&["GET", "b"]), "2");
    assert_eq!(Client::new(&proxy.addr, &first[0], ALL).ask(&["GET", "b"]), "$1\\r\\n2\\r\\n");
}

#[test]
fn who_does_not_agree_on_tls_is_not_waited_for() {
    let server = Server::start(&[]);
    let proxy = Proxy::start("split", &[server.addr()], "");
    let files = certificate(proxy.place.path(), "own", proxy.addr.split(':').next().unwrap());
    assert_eq!(proxy.change(|text| text + &table(&files)), "ok\n");
    let mut agreed = Client::new(&proxy.addr, &files[0], ALL);
    assert_eq!(agreed.ask(&["PING"]), "+PONG\\r\\n");
    let mut silent = TcpStream::connect(&proxy.addr).unwrap();
    silent.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    // An alert (type 21) is all it gets.
    let mut said = Vec::new();
    silent.read_to_end(&mut said).unwrap();
    assert!(said.len() < 16 && said.first() == Some(&21), "{said:?}");
    assert_eq!(agreed.ask(&["PING"]), "+PONG\\r\\n");
}

#[test]
fn replies_of_any_size_and_number_come_whole_and_who_does_not_read_is_waited_for() {
    let server = Server::start(&[]);
    let proxy = Proxy::start("split", &[server.addr()], "[limits]\noutput_pause = 1000000\n");
    let host = proxy.addr.split(':').next().unwrap();
    let files = certificate(proxy.place.path(), "own", host);
    server.client().ok(&["SET", "big", &"v".repeat(20 << 20)]);
    assert_eq!(proxy.change(|text| text + &table(&files)), "ok\n");
    let mut c = Client::new(&proxy.addr, &files[0], ALL);
    assert_eq!(c.try_ask(&["GET", "big"]).unwrap().len(), (20 << 20) + 13);
    // A pipeline that is written before anything is read.
    let mut all = Vec::new();
    for i in 0..5000 {
        all.extend(resp::request(&["SET", &format!("k{i}"), &"x".repeat(i % 700)]));
        all.extend(resp::request(&["GET", &format!("k{i}")]));
    }
    c.0.write_all(&all).unwrap();
    let mut want: usize = (0..5000).map(|i: usize| 5 + 5 + (i % 700).to_string().len() + i % 700).sum();
    let mut piece = vec![0; 64 * 1024];
    while want > 0 {
        let n = c.0.read(&mut piece).unwrap();
        assert!(n > 0 && n <= want);
        want -= n;
    }
    // Bounded while somebody does not read.
    let before = proxy.rss_mb();
    let mut slow = Client::new(&proxy.addr, &files[0], ALL);
    for _ in 0..20 {
        slow.0.write_all(&resp::request(&["GET", "big"])).unwrap();
    }
    std::thread::sleep(Duration::from_millis(500));
    assert!(c.ask(&["CLIENT", "ID"]).starts_with(':'));
    let grown = proxy.rss_mb().saturating_sub(before);
    assert!(grown < 100, "grew by {grown} MB");
    for _ in 0..2 {
        let mut left = (20 << 20) + 13;
        while left > 0 {
            let n = slow.0.read(&mut piece[..left.min(64 * 1024)]).unwrap();
            assert!(n > 0);
            left -= n;
        }
    }
    drop(slow);
    until(5.0, "it to be gone", || proxy.number("clients") == 1);
    // Who leaves politely is answered first.
    assert_eq!(c.ask(&["QUIT"]), "+OK\\r\\n");
    assert_eq!(c.0.read(&mut piece).unwrap(), 0);
}
