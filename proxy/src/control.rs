//! The way in for whoever runs the proxy: a unix socket that takes one word per connection, or a request of HTTP
//! (`GET /metrics`). The other processes at the same address ask here too, for what clients ask of all of them: they
//! say it as clients do.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::spawn_local;
use tokio::time::timeout;

use crate::config::Config;
use crate::resp::{Parsed, Requests, error};
use crate::state::{metrics, state};
use crate::world::W;
use crate::{clients, command, monitor, server, stream};

/// How long somebody may take to say what is wanted.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a request.
const LONGEST: usize = 1 << 20;

/// Removes the socket at the end.
pub struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

pub fn serve(w: W, path: &Path) -> Result<Socket, String> {
    // What a process that was killed has left is in the way; what a living one listens on is not ours.
    if std::os::unix::net::UnixStream::connect(path).is_err() {
        let _ = std::fs::remove_file(path);
    }
    let listener = UnixListener::bind(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(path, mode).map_err(|e| format!("{}: {e}", path.display()))?;
    spawn_local(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    spawn_local(answer(w, stream));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    });
    Ok(Socket(path.into()))
}

/// A word, or a command as clients write it.
async fn request(stream: &mut UnixStream) -> Option<Vec<u8>> {
    let mut buf = Vec::new();
    loop {
        if stream.read_buf(&mut buf).await.ok()? == 0 || buf.len() > LONGEST {
            return None;
        }
        if buf[0] != b'*' || !matches!(Requests::default().next(&buf), Ok(Parsed::More(_))) {
            return Some(buf);
        }
    }
}

async fn answer(w: W, mut stream: UnixStream) {
    let Ok(Some(said)) = timeout(PATIENCE, request(&mut stream)).await else { return };
    let text = String::from_utf8_lossy(&said).into_owned();
    let http = text.starts_with("GET /");
    let word = text.trim_start_matches("GET /").split_whitespace().next().unwrap_or("");
    let body: Vec<u8> = match word {
        _ if said[0] == b'*' => sibling(w, &said),
        "state" => state(w).into(),
        "metrics" => metrics(w).into(),
        "slowlog" => w.slowlog.json().into(),
        "monitor" => return monitor::tell(w, stream).await,
        "reload" => match reload(w) {
            Ok(()) => "ok\n".into(),
            Err(error) => format!("error: {error}\n").into(),
        },
        _ => "error: state, metrics, slowlog, monitor or reload\n".into(),
    };
    let mut out = String::new();
    if http {
        let _ = write!(out, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    }
    let _ = stream.write_all(&[out.as_bytes(), &body].concat()).await;
}

/// What a client of a sibling asks of our clients.
fn sibling(w: W, said: &[u8]) -> Vec<u8> {
    let mut parser = Requests::default();
    let Ok(Parsed::Command(_)) = parser.next(said) else { return error("ERR not a command") };
    let words: Vec<&[u8]> = parser.args().iter().map(|(from, to)| &said[*from as usize..*to as usize]).collect();
    clients::for_sibling(w, &words)
}

/// Takes over the configuration; nothing changes if it is not good. Clients stay, but for those that came by an
/// address that is not listened at any more, or by the other kind of connection.
pub fn reload(w: W) -> Result<(), String> {
    let mut config = Config::read(&w.path)?;
    if config.password_from.is_some() {
        config.password = w.config().password.clone();
    }
    if config.mode != w.mode.get() {
        return Err("mode cannot change in a running process".into());
    }
    let tls = config.tls.as_ref().map(stream::acceptor).transpose()?;
    let opened = server::open_new(w, &config)?;
    let before = w.config();
    if (&before.servers, &before.user, &before.password) == (&config.servers, &config.user, &config.password) {
        // What is known stays true.
        let known = w.known.borrow().as_ref().is_some_and(|known| Rc::ptr_eq(known, &before));
        adopt(w, config, known);
    } else {
        adopt(w, config, false);
    }
    let switched = w.tls.replace(tls).is_some() != w.tls.borrow().is_some();
    server::adopt(w, opened, switched);
    w.bump();
    w.refresh.notify_one();
    Ok(())
}

fn adopt(w: W, config: Config, known: bool) {
    *w.acts.borrow_mut() = crate::route::acts(&config);
    *w.lookup.borrow_mut() = command::Lookup::new(&config.rename);
    w.apply(&config);
    let config = Rc::new(config);
    *w.config.borrow_mut() = config.clone();
    if known {
        *w.known.borrow_mut() = Some(config);
    }
}
