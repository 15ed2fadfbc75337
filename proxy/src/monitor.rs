//! MONITOR: what the clients of this process and of its siblings ask, until the one who watches goes. Servers would
//! name the proxy's own address for every command; here each client has its own. `MONITOR ip:port` is what that
//! shard sees, with scripts' own commands and the proxy's address.

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::client::Client;
use crate::command::Cmd;
use crate::databases::shown;
use crate::dedicated::Dedicated;
use crate::resp::{self, OK};
use crate::siblings;
use crate::slow::{Request, reach};
use crate::slowlog::secret;
use crate::table::ADMIN;
use crate::world::W;

/// Lines that wait for one who watches; who is further behind is cut off.
const BEHIND: usize = 1024;
/// Bytes of a word that are shown.
const LENGTH: usize = 4096;
/// Bytes of a line.
const LINE: usize = 64 * 1024;

#[derive(Default)]
pub struct Monitors {
    watchers: RefCell<Vec<mpsc::Sender<Bytes>>>,
    some: Cell<bool>,
}

impl Monitors {
    #[inline]
    pub fn some(&self) -> bool {
        self.some.get()
    }

    fn add(&self) -> mpsc::Receiver<Bytes> {
        let (sender, receiver) = mpsc::channel(BEHIND);
        self.watchers.borrow_mut().push(sender);
        self.some.set(true);
        receiver
    }

    /// Shows a command to all who watch.
    #[cold]
    pub fn note<'a>(&self, client: &Client, cmd: &Cmd, words: impl Iterator<Item = &'a [u8]>) {
        if cmd.flags & ADMIN != 0 {
            return;
        }
        let line = Bytes::from(line(client, cmd, words));
        let mut watchers = self.watchers.borrow_mut();
        watchers.retain(|watcher| watcher.try_send(line.clone()).is_ok());
        self.some.set(!watchers.is_empty());
    }
}

fn line<'a>(client: &Client, cmd: &Cmd, words: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut out = format!("+{}.{:06} [{} {}]", now.as_secs(), now.subsec_micros(), client.db.get(), client.addr());
    for (i, word) in words.enumerate() {
        if out.len() > LINE {
            out.push_str(" ...");
            break;
        }
        let word = if i > 0 && secret(cmd) { b"(redacted)" } else { shown(client.w, word) };
        out.push_str(" \"");
        for byte in word.iter().take(LENGTH) {
            match byte {
                b'\\' | b'"' => out.extend(['\\', char::from(*byte)]),
                b'\n' => out.push_str("\\n"),
                b'\r' => out.push_str("\\r"),
                b'\t' => out.push_str("\\t"),
                7 => out.push_str("\\a"),
                8 => out.push_str("\\b"),
                b' '..=b'~' => out.push(char::from(*byte)),
                other => {
                    let _ = write!(out, "\\x{other:02x}");
                }
            }
        }
        if word.len() > LENGTH {
            let _ = write!(out, "... ({} more bytes)", word.len() - LENGTH);
        }
        out.push('"');
    }
    out.push_str("\r\n");
    out.into_bytes()
}

pub async fn watch(c: &Rc<Client>, request: &Request) {
    let shard = match request.argc() {
        1 => None,
        _ if c.w.databases.get() > 0 => return c.emit(b"-ERR one shard shows keys as no client may see them\r\n"),
        _ => match c.w.known_node(request.arg(1)) {
            Some(node) => Some(node),
            None => return c.emit(b"-ERR no such shard\r\n"),
        },
    };
    // Whether this account may, is for the servers to say.
    let ident = c.ident.borrow().clone();
    let own = async |node| Dedicated::new(c.w, c.key(node), &ident).await;
    let mut server = match reach(c, || shard.unwrap_or_else(|| c.w.any()), own).await {
        Ok(server) => server,
        Err(error) => return c.emit(&error),
    };
    match server.ask(&c.w.request(&["MONITOR"])).await {
        Ok(reply) if reply[..] == *OK => c.emit(OK),
        Ok(reply) => return c.emit(&reply),
        Err(e) => return c.emit(&resp::error(format!("ERR the server cannot be reached ({e})"))),
    }
    // All of it ends with the client, which drops this.
    if shard.is_some() {
        while let Ok(line) = server.receive().await {
            c.push(line);
            c.flush();
        }
        return c.cut();
    }
    drop(server);
    let mut tasks = JoinSet::new();
    for stream in siblings::connect(c.w, b"monitor\n").await {
        let c = c.clone();
        tasks.spawn_local(async move { lines(stream, |line| c.push(line)).await });
    }
    let mut own = c.w.monitors.add();
    while let Some(line) = own.recv().await {
        c.push(line);
    }
    c.cut();
}

async fn lines(mut stream: UnixStream, mut each: impl FnMut(Bytes)) {
    let mut buf = BytesMut::new();
    while !matches!(stream.read_buf(&mut buf).await, Ok(0) | Err(_)) {
        while let Some(end) = memchr::memchr(b'\n', &buf) {
            each(buf.split_to(end + 1).freeze());
        }
    }
}

/// What this process sees, for a sibling or whoever else asks at the control socket.
pub async fn tell(w: W, mut stream: UnixStream) {
    let mut own = w.monitors.add();
    loop {
        let next = poll_fn(|cx| match own.poll_recv(cx) {
            // Nothing more is said there: it has gone.
            Poll::Pending => stream.poll_read_ready(cx).map(|_| None),
            line => line,
        });
        let line = next.await;
        let Some(line) = line else { return };
        if stream.write_all(&line).await.is_err() {
            return;
        }
    }
}
