//! Subscriptions. A client that subscribes gets a connection of its own for it; what comes in there is passed on as
//! it is. Channels and patterns are subscribed on one node (a cluster tells all its nodes of each message), shard
//! channels on the node that has their slot.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::rc::Rc;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::Notify;

use crate::client::Client;
use crate::config::Mode;
use crate::dedicated::unless;
use crate::resp::{Replies, Value, Write};
use crate::route::{self, Place};
use crate::slow::{Request, reach};
use crate::upstream::{Failure, open};
use crate::world::W;

/// What a RESP2 client may say while it is subscribed.
pub fn allowed(name: &str) -> bool {
    name.ends_with("subscribe") || matches!(name, "ping" | "quit" | "reset")
}

struct Link {
    node: u16,
    /// For shard channels.
    sharded: bool,
    write: OwnedWriteHalf,
    reader: tokio::task::AbortHandle,
}

#[derive(Default)]
struct Shared {
    /// Channels, patterns, shard channels.
    sets: RefCell<[HashSet<Vec<u8>>; 3]>,
    /// Confirmations that are still to come.
    expected: Cell<usize>,
    /// The number of the link that must confirm.
    confirmed: Notify,
    broken: Cell<bool>,
}

#[derive(Default)]
pub struct Subscriptions {
    links: RefCell<Vec<Link>>,
    shared: Rc<Shared>,
}

fn kind(name: &[u8]) -> Option<(usize, bool)> {
    Some(match name {
        b"subscribe" => (0, true),
        b"unsubscribe" => (0, false),
        b"psubscribe" => (1, true),
        b"punsubscribe" => (1, false),
        b"ssubscribe" => (2, true),
        b"sunsubscribe" => (2, false),
        _ => return None,
    })
}

impl Subscriptions {
    #[inline]
    pub fn active(&self) -> bool {
        self.shared.sets.borrow().iter().any(|set| !set.is_empty())
    }

    pub fn count(&self, name: &str) -> usize {
        kind(name.as_bytes()).map_or(0, |(at, _)| self.shared.sets.borrow()[at].len())
    }

    pub fn close(&self) {
        for link in self.links.take() {
            link.reader.abort();
        }
        self.shared.sets.borrow_mut().iter_mut().for_each(HashSet::clear);
    }
}

/// SUBSCRIBE and its kin: over when the server has confirmed every channel.
pub async fn change(c: &Rc<Client>, request: &Request) {
    let name = request.cmd.name;
    let Some((at, on)) = kind(name.as_bytes()) else { return };
    let sharded = at == 2;
    let subs = &c.subscriptions;
    let shared = subs.shared.clone();
    let names: Vec<Vec<u8>> = (1..request.argc()).map(|i| request.arg(i).to_vec()).collect();
    let mut slot = None;
    if sharded && c.w.mode.get() == Mode::Cluster && request.argc() > 1 {
        slot = match route::place(request.cmd, &request.words()) {
            Place::Slot(slot) => Some(slot as usize),
            _ => return c.emit(route::CROSSSLOT),
        };
    }
    let serves = || slot.map_or_else(|| c.w.speaker(), |slot| c.w.slots[slot].get());
    let found = {
        let (links, node) = (subs.links.borrow(), serves());
        links.iter().position(|l| l.sharded == sharded && (!sharded || l.node == node || request.argc() == 1))
    };
    let link = match found {
        Some(link) => link,
        None if !on => return none(c, name, &names),
        None => match reach(c, serves, async |node| connect(c, node, sharded).await).await {
            Ok(link) => link,
            Err(error) => return c.emit(&error),
        },
    };
    let expected = if names.is_empty() { shared.sets.borrow()[at].len().max(1) } else { names.len() };
    shared.expected.set(expected);
    let Some(mut own) = ({
        let mut links = subs.links.borrow_mut();
        (link < links.len()).then(|| links.remove(link))
    }) else {
        return c.cut();
    };
    let sent = own.write.write_all(&request.raw).await;
    {
        let mut links = subs.links.borrow_mut();
        let at = link.min(links.len());
        links.insert(at, own);
    }
    if sent.is_err() {
        return c.cut();
    }
    while shared.expected.get() > 0 && !shared.broken.get() {
        shared.confirmed.notified().await;
    }
}

/// Nothing is subscribed, and that is what is confirmed.
fn none(c: &Rc<Client>, name: &str, names: &[Vec<u8>]) {
    let mut out = Vec::new();
    let proto = c.proto.get();
    let left = c.subscriptions.count("subscribe") + c.subscriptions.count("psubscribe");
    let left = if name == "sunsubscribe" { 0 } else { left };
    for i in 0..names.len().max(1) {
        out.head(if proto == 3 { b'>' } else { b'*' }, 3);
        out.bulk(name.as_bytes());
        match names.get(i) {
            Some(name) => out.bulk(name),
            None => out.nil(proto),
        }
        out.head(b':', left as i64);
    }
    c.emit(&out);
}

async fn connect(c: &Rc<Client>, node: u16, sharded: bool) -> Result<usize, Failure> {
    let w: W = c.w;
    let ident = c.ident.borrow().clone();
    let stream = open(w, c.key(node), &ident).await?;
    let (read, write) = stream.into_split();
    let shared = c.subscriptions.shared.clone();
    shared.broken.set(false);
    let weak = Rc::downgrade(c);
    let reader = tokio::task::spawn_local(async move {
        let mut scan = Replies::default();
        let mut part = bytes::BytesMut::new();
        let mut seen = 0;
        loop {
            let ready = unless(w.until_replaced(node), read.readable()).await;
            let Some(client) = weak.upgrade() else { return };
            part.reserve(16 * 1024);
            let closed = match read.try_read_buf(&mut part) {
                Ok(n) => ready.is_err() || n == 0,
                Err(e) => ready.is_err() || e.kind() != std::io::ErrorKind::WouldBlock,
            };
            let mut odd = false;
            while seen < part.len() {
                let Ok((n, end)) = scan.feed(&part[seen..]) else {
                    odd = true;
                    break;
                };
                seen += n;
                if end {
                    let frame = part.split_to(seen).freeze();
                    seen = 0;
                    note(&shared, &frame);
                    client.push(frame);
                }
            }
            client.flush();
            if closed || odd {
                // The messages that are missed now, the client must know of: as if the server had gone.
                shared.broken.set(true);
                shared.confirmed.notify_one();
                return client.cut();
            }
        }
    });
    let mut links = c.subscriptions.links.borrow_mut();
    links.push(Link { node, sharded, write, reader: reader.abort_handle() });
    Ok(links.len() - 1)
}

/// Keeps count of what is subscribed, by what the server confirms.
fn note(shared: &Shared, frame: &Bytes) {
    if frame[0] == b'-' {
        // It refuses: there is one error for the whole command.
        shared.expected.set(0);
        return shared.confirmed.notify_one();
    }
    // Messages are long and many: look no further than their first word.
    let head = &frame[..frame.len().min(32)];
    if !head.windows(9).any(|w| w == b"subscribe") {
        return;
    }
    let Some(Value::List(list)) = Value::parse(frame) else { return };
    let Some((at, on)) = list.first().and_then(Value::text).and_then(kind) else { return };
    if let Some(Value::Text(name)) = list.get(1) {
        let mut sets = shared.sets.borrow_mut();
        if on {
            sets[at].insert(name.to_vec());
        } else {
            sets[at].remove(*name);
        }
    }
    shared.expected.set(shared.expected.get().saturating_sub(1));
    if shared.expected.get() == 0 {
        shared.confirmed.notify_one();
    }
}
