//! Commands that take more than one step, or that the proxy answers itself. One at a time per client: when one
//! begins all earlier ones are answered, and later ones wait until it is done.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use crate::client::{Client, Mute};
use crate::command::Cmd;
use crate::config::Mode;
use crate::databases;
use crate::dedicated::Dedicated;
use crate::resp::{self, OK, Write};
use crate::retry::{self, To, UNREACHABLE};
use crate::route::{self, Act, Place};
use crate::table::{BLOCKING, NO_AUTH, READONLY};
use crate::transaction::Item;
use crate::upstream::{Conn, Failure, call};
use crate::world::{Ident, Key, NONE};
use crate::{clients, fanout, monitor, pubsub, transaction};

pub struct Request {
    pub raw: Bytes,
    pub args: Vec<(u32, u32)>,
    pub cmd: &'static Cmd,
}

impl Request {
    pub fn argc(&self) -> usize {
        self.args.len()
    }

    pub fn arg(&self, i: usize) -> &[u8] {
        let (from, to) = self.args[i];
        &self.raw[from as usize..to as usize]
    }

    pub fn is(&self, i: usize, word: &str) -> bool {
        i < self.argc() && self.arg(i).eq_ignore_ascii_case(word.as_bytes())
    }

    pub fn words(&self) -> Vec<&[u8]> {
        (0..self.argc()).map(|i| self.arg(i)).collect()
    }
}

pub const NOAUTH: &[u8] = b"-NOAUTH Authentication required.\r\n";
const SYNTAX: &[u8] = b"-ERR syntax error\r\n";

/// Does what `request` says, and emits all of its reply.
pub async fn perform(c: &Rc<Client>, request: Request) {
    let name = request.cmd.name;
    if c.subscriptions.active() && c.proto.get() == 2 && !pubsub::allowed(name) {
        let text = format!(
            "ERR Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed \
             in this context"
        );
        return c.emit(&resp::error(text));
    }
    let begun = c.transaction.borrow().as_ref().is_some_and(|t| t.begun);
    if begun && !matches!(name, "quit" | "reset") {
        return transaction::within(c, vec![Item::Command(request)]).await;
    }
    let anonymous = c.ident.borrow().anonymous();
    if anonymous && c.w.locked.get() && !request.cmd.has(NO_AUTH) {
        return c.emit(NOAUTH);
    }
    match name {
        "auth" => auth(c, &request).await,
        "hello" => hello(c, &request).await,
        "select" => select(c, &request).await,
        "reset" => reset(c),
        "quit" => {
            c.emit(OK);
            c.leaving.set(true);
        }
        "ping" if c.subscriptions.active() && c.proto.get() == 2 => {
            let mut out = Vec::from(&b"*2\r\n$4\r\npong\r\n"[..]);
            out.bulk(if request.argc() > 1 { request.arg(1) } else { b"" });
            c.emit(&out);
        }
        "multi" | "exec" | "discard" | "watch" | "unwatch" => transaction::outside(c, request).await,
        "subscribe" | "unsubscribe" | "psubscribe" | "punsubscribe" | "ssubscribe" | "sunsubscribe" => {
            pubsub::change(c, &request).await;
        }
        "monitor" => monitor::watch(c, &request).await,
        _ if name.starts_with("client|") => clients::command(c, &request).await,
        _ if request.cmd.has(BLOCKING) => block(c, &request).await,
        _ => {
            let act = c.w.acts.borrow()[request.cmd.id as usize];
            if matches!(act, Act::Slow | Act::Split) {
                fanout::command(c, &request).await;
            } else {
                forward(c, &request).await;
            }
        }
    }
}

/// What comes of reaching a server: the one that serves this at the time. Another one, or the same again, while none
/// can be reached.
pub async fn reach<T>(
    c: &Rc<Client>,
    serves: impl Fn() -> u16,
    how: impl AsyncFn(u16) -> Result<T, Failure>,
) -> Result<T, Vec<u8>> {
    let since = c.w.clock();
    loop {
        let error = match serves() {
            NONE => b"-CLUSTERDOWN Hash slot not served\r\n".to_vec(),
            node => match how(node).await {
                Ok(reached) => return Ok(reached),
                Err(Failure::Refused(words)) => return Err(words.to_vec()),
                Err(failure) => broken(failure),
            },
        };
        if retry::expired(c.w, since) || c.closed.get() {
            return Err(error);
        }
        c.w.refresh.notify_one();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Where this request belongs now.
fn serves(c: &Client, request: &Request) -> u16 {
    if c.w.mode.get() == Mode::Split {
        return c.w.master.get();
    }
    match route::place(request.cmd, &request.words()) {
        Place::Slot(slot) => c.w.slots[slot as usize].get(),
        _ => c.w.any(),
    }
}

/// The same; waits for a while if nobody serves it.
pub async fn node_for(c: &Rc<Client>, request: &Request) -> Option<u16> {
    let found = reach(c, || serves(c, request), async |node| Ok(node)).await;
    found.map_err(|error| c.emit(&error)).ok()
}

/// Over the shared connection, when nobody served the slot a moment ago.
async fn forward(c: &Rc<Client>, request: &Request) {
    let Some(node) = node_for(c, request).await else { return };
    let reply = call(&c.conn(node), request.raw.clone(), request.cmd.has(READONLY), false).await;
    c.emit_big(databases::reply(c, request, reply));
}

/// An internal question as this client, always in the old protocol, to exactly this node.
pub async fn ask<T: AsRef<[u8]>>(c: &Rc<Client>, node: u16, words: &[T]) -> Bytes {
    let conn = Conn::get(c.w, Key { proto: 2, ..c.key(node) }, c.lane(), &c.ident.borrow().clone());
    call(&conn, c.w.request(words), true, true).await
}

/// The same, but wherever its key leads.
pub async fn seek<T: AsRef<[u8]>>(c: &Rc<Client>, node: u16, words: &[T], repeatable: bool) -> Bytes {
    let conn = Conn::get(c.w, Key { proto: 2, ..c.key(node) }, c.lane(), &c.ident.borrow().clone());
    call(&conn, c.w.request(words), repeatable, false).await
}

pub fn broken(failure: Failure) -> Vec<u8> {
    match failure {
        Failure::Refused(words) => words.to_vec(),
        Failure::Broken(why) => resp::error(format!("ERR the server cannot be reached ({why})")),
    }
}

/// A command for which the server may make its client wait.
async fn block(c: &Rc<Client>, request: &Request) {
    if c.w.mode.get() == Mode::Cluster {
        if let Place::Many = route::place(request.cmd, &request.words()) {
            return c.emit(route::CROSSSLOT);
        }
    }
    let since = c.w.clock();
    let asking = Cell::new(None);
    loop {
        let ident = c.ident.borrow().clone();
        let get = async |node| Dedicated::get(c.w, c.key(node), &ident).await;
        let asked = asking.get();
        let mut own = match reach(c, || asking.take().unwrap_or_else(|| serves(c, request)), get).await {
            Ok(own) => own,
            Err(error) => return c.emit(&error),
        };
        let node = own.key.node;
        let ready = if asked == Some(node) { own.ask(b"*1\r\n$6\r\nASKING\r\n").await.map(|_| ()) } else { Ok(()) };
        let sent = match ready {
            Ok(()) => own.send(&request.raw).await,
            Err(e) => Err(e),
        };
        let reply = match sent {
            // For as long as it takes.
            Ok(()) => own.receive().await,
            Err(e) => Err(e),
        };
        let reply = match reply {
            Ok(reply) => reply,
            Err(e) => {
                c.w.refresh.notify_one();
                let text = format!("ERR the connection to the server broke before it replied ({e})");
                return c.emit(&resp::error(text));
            }
        };
        own.leave();
        let to = if reply[0] == b'-' { retry::redirection(c.w, &reply) } else { None };
        match to {
            Some(_) if retry::expired(c.w, since) && c.w.clock() - since < 2 * c.w.config().times.retry_ms => {
                return c.emit_big(reply);
            }
            Some(To::Moved(slot, addr)) => {
                c.w.slots[slot as usize].set(retry::target(c.w, node, &addr));
                c.w.bump();
                c.w.refresh.notify_one();
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Some(To::Ask(addr)) => asking.set(Some(retry::target(c.w, node, &addr))),
            Some(_) => {
                c.w.refresh.notify_one();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            None => return c.emit_big(databases::reply(c, request, reply)),
        }
    }
}

// -- who the client is

/// Who has these credentials. Where the default account has not this password, `user:password` may be meant.
async fn verify(c: &Rc<Client>, user: Option<&[u8]>, password: &[u8]) -> Result<Rc<Ident>, Bytes> {
    let refused = match known(c, user, password).await {
        Ok(ident) => return Ok(ident),
        Err(reply) => reply,
    };
    let wrong = refused.starts_with(b"-WRONGPASS") || refused.starts_with(b"-ERR AUTH <password> called without");
    let default = user.is_none_or(|user| user == b"default");
    let colon = password.iter().position(|b| *b == b':').filter(|at| *at > 0 && default && wrong);
    let Some(colon) = colon else { return Err(refused) };
    known(c, Some(&password[..colon]), &password[colon + 1..]).await.map_err(|_| refused)
}

/// Asks the servers whether these credentials are good: another one, or again, while one cannot be reached.
async fn known(c: &Rc<Client>, user: Option<&[u8]>, password: &[u8]) -> Result<Rc<Ident>, Bytes> {
    let ident = c.w.ident(user, password);
    let request: Bytes = match user {
        Some(user) => resp::request(&[b"AUTH", user, password]).into(),
        None => resp::request(&[b"AUTH", password]).into(),
    };
    let since = c.w.clock();
    loop {
        let node = c.w.any();
        let reply = if node == NONE {
            Bytes::from_static(b"-ERR no server can be asked now\r\n")
        } else {
            let key = Key { node, ident: ident.id, proto: c.proto.get(), db: 0 };
            call(&Conn::get(c.w, key, c.lane(), &ident), request.clone(), true, true).await
        };
        if reply.starts_with(b"+OK") {
            return Ok(ident);
        }
        let passing = node == NONE || reply[1..].starts_with(UNREACHABLE.as_bytes());
        if !passing || retry::expired(c.w, since) || c.closed.get() {
            return Err(reply);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn auth(c: &Rc<Client>, request: &Request) {
    if request.argc() > 3 {
        return c.emit(SYNTAX);
    }
    let (user, password) =
        if request.argc() == 3 { (Some(request.arg(1)), request.arg(2)) } else { (None, request.arg(1)) };
    match verify(c, user, password).await {
        Ok(ident) => {
            *c.ident.borrow_mut() = ident;
            c.changed();
            c.emit(OK);
        }
        Err(reply) => c.emit(&reply),
    }
}

async fn hello(c: &Rc<Client>, request: &Request) {
    let mut proto = c.proto.get();
    let mut next = 1;
    if request.argc() > 1 {
        proto = match resp::number(request.arg(1)) {
            Some(2) => 2,
            Some(3) => 3,
            Some(_) => return c.emit(b"-NOPROTO unsupported protocol version\r\n"),
            None => return c.emit(b"-ERR Protocol version is not an integer or out of range\r\n"),
        };
        next = 2;
    }
    let (mut credentials, mut name) = (None, None);
    while next < request.argc() {
        if request.is(next, "auth") && next + 2 < request.argc() {
            credentials = Some((request.arg(next + 1), request.arg(next + 2)));
            next += 3;
        } else if request.is(next, "setname") && next + 1 < request.argc() {
            name = Some(request.arg(next + 1));
            next += 2;
        } else {
            let option = String::from_utf8_lossy(request.arg(next)).into_owned();
            return c.emit(&resp::error(format!("ERR Syntax error in HELLO option '{option}'")));
        }
    }
    if let Some((user, password)) = credentials {
        match verify(c, Some(user), password).await {
            Ok(ident) => *c.ident.borrow_mut() = ident,
            Err(reply) => return c.emit(&reply),
        }
    } else if c.ident.borrow().anonymous() && c.w.locked.get() {
        return c.emit(
            b"-NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH \
              <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the \
              same time\r\n",
        );
    }
    if let Some(name) = name {
        if !clients::good_name(name) {
            return c.emit(clients::BAD_NAME);
        }
        *c.name.borrow_mut() = name.to_vec();
    }
    c.proto.set(proto);
    c.changed();
    let mut out = Vec::new();
    if proto == 3 {
        out.head(b'%', 7)
    } else {
        out.head(b'*', 14)
    }
    out.bulk(b"server");
    out.bulk(b"redis");
    out.bulk(b"version");
    out.bulk(c.w.version.borrow().as_bytes());
    out.bulk(b"proto");
    out.head(b':', i64::from(proto));
    out.bulk(b"id");
    out.head(b':', c.id as i64);
    out.bulk(b"mode");
    out.bulk(b"standalone");
    out.bulk(b"role");
    out.bulk(b"master");
    out.bulk(b"modules");
    out.head(b'*', 0);
    c.emit(&out);
}

async fn select(c: &Rc<Client>, request: &Request) {
    let Some(db) = resp::number(request.arg(1)).and_then(|n| i32::try_from(n).ok()) else {
        return c.emit(b"-ERR value is not an integer or out of range\r\n");
    };
    if c.w.mode.get() == Mode::Cluster {
        let several = i64::from(c.w.databases.get());
        return match db {
            0 => {
                c.db.set(0);
                c.emit(OK)
            }
            _ if several == 0 => c.emit(b"-ERR SELECT is not allowed in cluster mode\r\n"),
            _ if (1..several).contains(&i64::from(db)) => {
                c.db.set(db as u32);
                c.emit(OK)
            }
            _ => c.emit(b"-ERR DB index is out of range\r\n"),
        };
    }
    let Ok(db) = u32::try_from(db) else { return c.emit(b"-ERR DB index is out of range\r\n") };
    let Some(node) = node_for(c, request).await else { return };
    let conn = Conn::get(c.w, Key { db, ..c.key(node) }, c.lane(), &c.ident.borrow().clone());
    let reply = call(&conn, request.raw.clone(), true, false).await;
    if reply.starts_with(b"+OK") {
        c.db.set(db);
        c.changed();
    }
    c.emit(&reply);
}

fn reset(c: &Rc<Client>) {
    c.mute.set(Mute::Off);
    c.subscriptions.close();
    c.transaction.borrow_mut().take();
    *c.ident.borrow_mut() = c.w.anonymous.clone();
    c.name.borrow_mut().clear();
    c.proto.set(2);
    c.db.set(0);
    c.changed();
    c.emit(b"+RESET\r\n");
}
