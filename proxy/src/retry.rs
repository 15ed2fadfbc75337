//! What is done with a request that a server did not carry out: it has not the slot (any more), is not ready, or
//! is gone. The client learns of it only when this has gone on for too long.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use crate::config::Mode;
use crate::resp;
use crate::route;
use crate::upstream::{Conn, Pending, Sink};
use crate::world::{Ident, Key, NONE, W, add};

#[derive(Debug, PartialEq)]
pub enum To {
    Moved(u16, String),
    Ask(String),
    /// The same again in a moment, wherever it belongs then.
    Later,
    /// split: a replica cannot; the master can.
    Master,
}

const TRIES: u8 = 60;
/// How the error begins with which a request is given up that no server was told.
pub const UNREACHABLE: &str = "ERR the server cannot be reached";

/// Whether an error reply means that another server, or another time, would do. Nothing was executed then.
pub fn redirection(w: W, frame: &[u8]) -> Option<To> {
    let cluster = w.mode.get() == Mode::Cluster;
    let text = std::str::from_utf8(frame.get(1..frame.len().checked_sub(2)?)?).ok()?;
    let mut words = text.split(' ');
    match words.next()? {
        "MOVED" if cluster => Some(To::Moved(words.next()?.parse().ok().filter(|s| *s < 16384)?, words.next()?.into())),
        "ASK" if cluster => Some(To::Ask(words.nth(1)?.into())),
        "TRYAGAIN" | "CLUSTERDOWN" if cluster => Some(To::Later),
        "LOADING" => Some(To::Later),
        "READONLY" if !cluster && text.contains("replica") => Some(To::Later),
        "MASTERDOWN" if !cluster => Some(To::Master),
        "NOSCRIPT" if !cluster => Some(To::Master),
        _ => None,
    }
}

/// The node that a redirection names. Without a host it is that of the server that said it.
pub fn target(w: W, from: u16, addr: &str) -> u16 {
    match addr.rsplit_once(':') {
        Some(("" | "?", port)) => {
            let own = w.addr(from);
            let host = own.rsplit_once(':').map_or("", |(host, _)| host);
            w.node(&format!("{host}:{port}"))
        }
        _ => w.node(addr),
    }
}

pub fn expired(w: W, since: u64) -> bool {
    w.clock().saturating_sub(since) > w.config().times.retry_ms
}

pub fn redirect(conn: &Conn, to: To, request: Bytes, mut pending: Pending, frame: &[u8]) {
    let w = conn.w;
    pending.tries = pending.tries.saturating_add(1);
    if pending.failed == 0 {
        pending.failed = w.clock();
    }
    let at_master = w.mode.get() == Mode::Split && conn.key.node == w.master.get();
    if pending.sink.gone() || (at_master && to == To::Master && frame.starts_with(b"-NOSCRIPT")) {
        return pending.sink.deliver(frame);
    }
    if pending.tries > TRIES || expired(w, pending.failed) {
        return pending.sink.deliver(frame);
    }
    add(&w.count.redirected, 1);
    hold(&pending.sink);
    let again = Again::of(conn);
    match to {
        To::Moved(slot, addr) => {
            let node = target(w, conn.key.node, &addr);
            if w.slots[slot as usize].replace(node) != node {
                w.bump();
            }
            w.refresh.notify_one();
            if pending.tries > 4 {
                again.later(request, pending, frame.into());
            } else {
                again.at(node, request, pending, false);
            }
        }
        To::Ask(addr) => again.at(target(w, conn.key.node, &addr), request, pending, true),
        To::Master if w.master.get() != NONE => again.at(w.master.get(), request, pending, false),
        To::Later | To::Master => {
            if !frame.starts_with(b"-TRYAGAIN") {
                w.refresh.notify_one();
            }
            again.later(request, pending, frame.into());
        }
    }
}

/// The connection broke before this request was answered.
pub fn again(conn: &Conn, request: Bytes, mut pending: Pending, sent: bool, why: &str) {
    let w = conn.w;
    if pending.failed == 0 {
        pending.failed = w.clock();
    }
    pending.tries = pending.tries.saturating_add(1);
    if pending.sink.gone() {
        return;
    }
    if sent && !pending.repeatable {
        let text = "ERR the connection to the server broke before it replied: the command may have been executed";
        return pending.sink.deliver(&resp::error(text));
    }
    let error = resp::error(format!("{UNREACHABLE} ({why})"));
    if pending.fixed || pending.tries > TRIES || expired(w, pending.failed) {
        return pending.sink.deliver(&error);
    }
    add(&w.count.retried, 1);
    hold(&pending.sink);
    w.bump();
    Again::of(conn).later(request, pending, error);
}

/// What the client sends next must not overtake this.
fn hold(sink: &Sink) {
    if let Sink::Client(client, _) = sink {
        client.hold.set(true);
    }
}

struct Again {
    w: W,
    key: Key,
    ident: Rc<Ident>,
}

impl Again {
    fn of(conn: &Conn) -> Again {
        Again { w: conn.w, key: conn.key, ident: conn.ident.clone() }
    }

    fn at(&self, node: u16, request: Bytes, pending: Pending, asking: bool) {
        let lane = match &pending.sink {
            Sink::Client(client, _) => client.lane(),
            _ => 0,
        };
        let conn = Conn::get(self.w, Key { node, ..self.key }, lane, &self.ident);
        if asking {
            conn.send(b"*1\r\n$6\r\nASKING\r\n", Pending::new(Sink::Ignore, true, true));
        }
        conn.send_big(request, pending);
    }

    fn later(self, request: Bytes, pending: Pending, error: Vec<u8>) {
        let pause = Duration::from_millis(10 * u64::from(pending.tries.min(10)));
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(pause).await;
                if pending.sink.gone() {
                    return;
                }
                let node = route::again(self.w, &request);
                if node != NONE {
                    return self.at(node, request, pending, false);
                }
                if expired(self.w, pending.failed) {
                    return pending.sink.deliver(&error);
                }
            }
        });
    }
}
