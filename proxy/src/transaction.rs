//! MULTI, EXEC, DISCARD, WATCH, UNWATCH: on a connection that the client has to itself, so that the server keeps its
//! promises to this client alone.
//!
//! What the client has sent since MULTI is told to the server in one write, with EXEC if that is there already; who
//! asks for each reply before the next command gets each from the server. Commands are kept until EXEC. If the slot
//! has moved and nothing was watched, the same transaction is put to the new node: nothing of it has been executed.
//! If something was watched, nobody knows what happened to it on the way, and EXEC answers nil, as if it had been
//! touched.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use crate::buf::BIG;
use crate::client::{Client, unknown};
use crate::config::Mode;
use crate::databases;
use crate::dedicated::Dedicated;
use crate::resp::{self, OK};
use crate::retry::{self, To};
use crate::route::{self, Act, Place};
use crate::slot::slot;
use crate::slow::{Request, broken};
use crate::upstream::Failure;
use crate::world::NONE;

const QUEUED: &[u8] = b"+QUEUED\r\n";
const MULTI: &[u8] = b"*1\r\n$5\r\nMULTI\r\n";
const EXEC: &[u8] = b"*1\r\n$4\r\nEXEC\r\n";
const ASKING: &[u8] = b"*1\r\n$6\r\nASKING\r\n";
const ABORT: &[u8] = b"-EXECABORT Transaction discarded because of previous errors.\r\n";
const DISCARD: &[u8] = b"*1\r\n$7\r\nDISCARD\r\n";
const UNWATCH: &[u8] = b"*1\r\n$7\r\nUNWATCH\r\n";
const BECAUSE: &[u8] = b"-EXECABORT Transaction discarded because of: ";
/// Bytes of commands that are kept until EXEC: what redis-server itself keeps for one client.
const KEPT: usize = 1 << 30;

#[derive(Default)]
pub struct Transaction {
    /// MULTI was said.
    pub begun: bool,
    own: Option<Dedicated>,
    slot: Option<u16>,
    watched: bool,
    /// What was watched cannot be vouched for.
    lost: bool,
    spoiled: bool,
    /// The server has been told of MULTI.
    told: bool,
    asking: Option<u16>,
    queued: Vec<Bytes>,
    /// So many of them the server knows.
    known: usize,
    bytes: usize,
    /// When it began to fail.
    failing: Option<u64>,
}

/// One thing of a transaction, in the client's order.
pub enum Item {
    Command(Request),
    /// An error of our own, for a command that no server is to see.
    Refused(Vec<u8>),
}

/// What the server said to the commands that it was told, and to EXEC if that was sent too.
type Told = (Vec<Bytes>, Option<std::io::Result<Bytes>>);

enum Trouble {
    /// Somewhere else or later, from the beginning.
    Again,
    /// For good.
    Says(Bytes),
}

impl Transaction {
    /// A command was refused before it reached the server: EXEC must fail.
    pub fn spoil(&mut self) {
        if self.begun {
            self.spoiled = true;
        }
    }

    pub fn len(&self) -> usize {
        self.queued.len()
    }

    pub fn is_empty(&self) -> bool {
        self.queued.is_empty()
    }

    pub fn watching(&self) -> bool {
        self.watched
    }

    fn node(&self, c: &Client) -> u16 {
        match (self.asking, c.w.mode.get(), self.slot) {
            (Some(node), _, _) => node,
            (None, Mode::Split, _) => c.w.master.get(),
            (None, Mode::Cluster, Some(slot)) => c.w.slots[slot as usize].get(),
            (None, Mode::Cluster, None) => c.w.any(),
        }
    }

    /// A connection of our own to where the slot is.
    async fn connect(&mut self, c: &Rc<Client>) -> Result<(), Trouble> {
        if self.own.is_some() {
            return Ok(());
        }
        let node = self.node(c);
        if node == NONE {
            return self.failed(c, b"-CLUSTERDOWN Hash slot not served\r\n");
        }
        let ident = c.ident.borrow().clone();
        match Dedicated::get(c.w, c.key(node), &ident).await {
            Ok(own) => {
                self.own = Some(own);
                Ok(())
            }
            Err(Failure::Refused(words)) => Err(Trouble::Says(words)),
            Err(failure) => self.failed(c, &broken(failure)),
        }
    }

    /// Nothing is lost yet: again, unless this has gone on for too long.
    fn failed<T>(&mut self, c: &Client, error: &[u8]) -> Result<T, Trouble> {
        self.own = None;
        (self.told, self.known, self.asking) = (false, 0, None);
        c.w.refresh.notify_one();
        let since = *self.failing.get_or_insert(c.w.clock());
        if retry::expired(c.w, since) {
            return Err(Trouble::Says(Bytes::copy_from_slice(error)));
        }
        Err(Trouble::Again)
    }

    fn broke<T>(&mut self, c: &Client, e: &std::io::Error) -> Result<T, Trouble> {
        self.failed(c, &resp::error(format!("ERR the connection to the server broke ({e})")))
    }

    /// The same at the node that a server has named.
    fn elsewhere<T>(&mut self, c: &Client, from: u16, to: To, reply: &[u8]) -> Result<T, Trouble> {
        let failed = self.failed(c, reply);
        match to {
            To::Moved(slot, addr) => {
                let target = retry::target(c.w, from, &addr);
                if c.w.slots[slot as usize].replace(target) != target {
                    c.w.bump();
                }
            }
            To::Ask(addr) => self.asking = Some(retry::target(c.w, from, &addr)),
            To::Later | To::Master => {}
        }
        failed
    }

    /// One request and its reply; redirections become trouble.
    async fn ask(&mut self, c: &Rc<Client>, request: &[u8]) -> Result<Bytes, Trouble> {
        let Some(own) = &mut self.own else { return Err(Trouble::Again) };
        let node = own.key.node;
        match own.ask(request).await {
            Err(e) => self.broke(c, &e),
            Ok(reply) => match away(c, &reply) {
                Some(to) => self.elsewhere(c, node, to, &reply),
                None => Ok(reply),
            },
        }
    }

    /// Tells the server MULTI and whatever else it does not know, and EXEC if that is wanted, in one write.
    async fn tell(&mut self, c: &Rc<Client>, exec: bool) -> Result<Told, Trouble> {
        self.connect(c).await?;
        let Some(own) = &mut self.own else { return Err(Trouble::Again) };
        if own.closed() {
            return self.broke(c, &std::io::ErrorKind::UnexpectedEof.into());
        }
        let node = own.key.node;
        let fresh = &self.queued[self.known..];
        let preface = usize::from(!self.told) + usize::from(!self.told && self.asking.is_some());
        let mut out = Vec::new();
        if !self.told {
            out.extend_from_slice(if self.asking.is_some() { ASKING } else { b"" });
            out.extend_from_slice(MULTI);
        }
        for request in fresh {
            if request.len() < BIG {
                out.extend_from_slice(request);
                continue;
            }
            let sent = async {
                own.send(&std::mem::take(&mut out)).await?;
                own.send(request).await
            };
            if let Err(e) = sent.await {
                return self.broke(c, &e);
            }
        }
        out.extend_from_slice(if exec { EXEC } else { b"" });
        let mut end = own.send(&out).await.map(|()| Bytes::new());
        let mut replies = Vec::with_capacity(fresh.len());
        for i in 0..preface + fresh.len() {
            if end.is_err() {
                break;
            }
            match own.answer().await {
                // A server that has not the slot has not the transaction either: EXEC, if it was sent, did nothing.
                Ok(reply) if away(c, &reply).is_some() => {
                    let to = away(c, &reply).unwrap_or(To::Later);
                    return self.elsewhere(c, node, to, &reply);
                }
                Ok(reply) if i < preface && reply[..] != *OK => {
                    self.own = None;
                    return Err(Trouble::Says(reply));
                }
                Ok(reply) if i >= preface => replies.push(reply),
                Ok(_) => {}
                Err(e) => end = Err(e),
            }
        }
        if let (Err(e), false) = (&end, exec) {
            let e = e.kind().into();
            return self.broke(c, &e);
        }
        if end.is_ok() && exec {
            end = own.answer().await;
        }
        replies.resize(fresh.len(), Bytes::from_static(QUEUED));
        (self.told, self.known, self.failing) = (true, self.queued.len(), None);
        Ok((replies, exec.then_some(end)))
    }

    /// Queues commands, and executes all there are if `exec`: the replies to the commands, and that to EXEC.
    async fn run(&mut self, c: &Rc<Client>, fresh: Vec<Bytes>, exec: bool) -> (Vec<Bytes>, Bytes) {
        let count = fresh.len();
        self.queued.extend(fresh);
        let queued = vec![Bytes::from_static(QUEUED); count];
        loop {
            if self.lost {
                return (queued, if self.spoiled { Bytes::from_static(ABORT) } else { nil(c) });
            }
            let nowhere = c.w.mode.get() == Mode::Cluster && self.slot.is_none();
            if !exec && (nowhere || count == 0) {
                return (queued, Bytes::new());
            }
            let told =
                if self.spoiled && count == 0 { Ok((vec![], None)) } else { self.tell(c, exec && !self.spoiled).await };
            let (mut replies, end) = match told {
                Ok(told) => told,
                Err(Trouble::Again) if self.watched => {
                    self.lost = true;
                    continue;
                }
                Err(Trouble::Again) => {
                    pause(self).await;
                    continue;
                }
                Err(Trouble::Says(reply)) => {
                    let not = [b"-ERR the transaction was not executed: ", &reply[1..]].concat();
                    let last = if self.spoiled || count > 0 { Bytes::from_static(ABORT) } else { not.into() };
                    self.spoiled = true;
                    return (vec![reply; count], last);
                }
            };
            self.spoiled |= replies.iter().any(|reply| reply[..] != *QUEUED);
            let replies = replies.split_off(replies.len() - count);
            match end {
                None if exec => {
                    self.discard().await;
                    return (replies, Bytes::from_static(ABORT));
                }
                None => return (replies, Bytes::new()),
                Some(Err(_)) if self.spoiled => return (replies, Bytes::from_static(ABORT)),
                Some(Err(e)) => {
                    c.w.refresh.notify_one();
                    let text = format!(
                        "ERR the connection to the server broke before it replied ({e}): the transaction may have \
                         been executed"
                    );
                    return (replies, resp::error(text).into());
                }
                Some(Ok(reply)) => {
                    let Some(to) = away(c, &reply) else {
                        if let Some(own) = self.own.take() {
                            own.leave();
                        }
                        return (replies, reply);
                    };
                    if self.watched {
                        self.lost = true;
                        continue;
                    }
                    let node = self.own.as_ref().map_or(NONE, |own| own.key.node);
                    if let Err(Trouble::Says(reply)) = self.elsewhere::<()>(c, node, to, &reply) {
                        return (replies, reply);
                    }
                    pause(self).await;
                }
            }
        }
    }

    async fn discard(&mut self) {
        if let Some(mut own) = self.own.take() {
            let request = if self.told { DISCARD } else { UNWATCH };
            if matches!(own.ask(request).await, Ok(reply) if reply[..] == *OK) {
                own.leave();
            }
        }
    }

    /// Why a command cannot be queued at all.
    fn refusal(&mut self, c: &Rc<Client>, request: &Request) -> Option<Vec<u8>> {
        let name = request.cmd.name;
        // These are no part of a transaction, so they do not spoil it.
        match name {
            "multi" => return Some(resp::error("ERR MULTI calls can not be nested")),
            "watch" => return Some(resp::error("ERR WATCH inside MULTI is not allowed")),
            _ => {}
        }
        let error = match c.w.acts.borrow()[request.cmd.id as usize] {
            Act::Refuse => unknown(&request.words()),
            Act::Slow if name != "unwatch" => {
                resp::error(format!("ERR {name} is not supported inside MULTI by this proxy"))
            }
            _ => match belongs(c, self, request) {
                Err(error) => error.to_vec(),
                Ok(_) if self.bytes + request.raw.len() > KEPT => {
                    resp::error("ERR the transaction is too large for this proxy")
                }
                Ok(slot) => {
                    self.slot = slot.or(self.slot);
                    self.bytes += request.raw.len();
                    return None;
                }
            },
        };
        self.spoiled = true;
        Some(error)
    }

    async fn watch(&mut self, c: &Rc<Client>, request: &[u8]) -> Bytes {
        loop {
            let told = async {
                self.connect(c).await?;
                if self.asking.is_some() {
                    self.ask(c, ASKING).await?;
                }
                self.ask(c, request).await
            };
            match told.await {
                Ok(reply) => {
                    self.watched |= reply[..] == *OK;
                    self.failing = None;
                    return reply;
                }
                Err(Trouble::Says(reply)) => return reply,
                // What was watched before is out of sight now: EXEC will say so.
                Err(Trouble::Again) if self.watched => {
                    self.lost = true;
                    return Bytes::from_static(OK);
                }
                Err(Trouble::Again) => pause(self).await,
            }
        }
    }
}

/// Whether a reply means that nothing was executed here, but may be elsewhere or later.
fn away(c: &Client, reply: &[u8]) -> Option<To> {
    if reply.first() != Some(&b'-') {
        return None;
    }
    let to = match reply.strip_prefix(BECAUSE) {
        Some(why) => retry::redirection(c.w, &[b"-", why].concat()),
        None => retry::redirection(c.w, reply),
    };
    to.filter(|to| *to != To::Master)
}

fn nil(c: &Client) -> Bytes {
    Bytes::from_static(if c.proto.get() == 3 { b"_\r\n" } else { b"*-1\r\n" })
}

async fn pause(t: &Transaction) {
    let ms = if t.asking.is_some() { 1 } else { 15 };
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

/// The slot that a command of a transaction is about; the error if that is no good.
fn belongs(c: &Client, t: &Transaction, request: &Request) -> Result<Option<u16>, &'static [u8]> {
    if c.w.mode.get() == Mode::Split {
        return Ok(None);
    }
    match route::place(request.cmd, &request.words()) {
        Place::Anywhere => Ok(None),
        Place::Slot(slot) if t.slot.is_none_or(|s| s == slot) => Ok(Some(slot)),
        _ => Err(route::CROSSSLOT),
    }
}

/// These commands where no MULTI was said.
pub async fn outside(c: &Rc<Client>, request: Request) {
    match request.cmd.name {
        "multi" => within(c, vec![Item::Command(request)]).await,
        "exec" => c.emit(b"-ERR EXEC without MULTI\r\n"),
        "discard" => c.emit(b"-ERR DISCARD without MULTI\r\n"),
        "unwatch" => {
            let taken = c.transaction.borrow_mut().take();
            if let Some(mut t) = taken {
                t.discard().await;
            }
            c.emit(OK);
        }
        _ => {
            let mut t = c.transaction.borrow_mut().take().unwrap_or_default();
            match belongs(c, &t, &request) {
                Err(error) => c.emit(error),
                Ok(slot) => {
                    t.slot = slot.or(t.slot);
                    let reply = if t.lost { Bytes::from_static(OK) } else { t.watch(c, &request.raw).await };
                    c.emit(&reply);
                }
            }
            if t.watched || t.lost {
                *c.transaction.borrow_mut() = Some(t);
            } else if let Some(own) = t.own.take() {
                own.leave();
            }
        }
    }
}

/// What a client has sent from MULTI on, or from where it was read last: at most to its EXEC or DISCARD.
pub async fn within(c: &Rc<Client>, items: Vec<Item>) {
    let mut t = c.transaction.borrow_mut().take().unwrap_or_default();
    let (mut replies, mut fresh, mut end) = (Vec::with_capacity(items.len()), Vec::new(), None);
    for item in items {
        replies.push(match item {
            Item::Refused(error) => {
                t.spoil();
                Some(Bytes::from(error))
            }
            Item::Command(request) => match request.cmd.name {
                "multi" if !t.begun => {
                    t.begun = true;
                    Some(Bytes::from_static(OK))
                }
                name @ ("exec" | "discard") => {
                    end = Some(name);
                    break;
                }
                _ => match t.refusal(c, &request) {
                    Some(error) => Some(error.into()),
                    None => {
                        fresh.push(request.raw);
                        None
                    }
                },
            },
        });
    }
    let (answers, last) = t.run(c, fresh, end == Some("exec")).await;
    let mut answers = answers.into_iter();
    for reply in replies {
        c.emit_big(reply.or_else(|| answers.next()).unwrap_or_default());
    }
    match end {
        None => *c.transaction.borrow_mut() = Some(t),
        Some("exec") => c.emit_big(databases::executed(c, &t.queued, last)),
        Some(_) => {
            t.discard().await;
            c.emit(OK);
        }
    }
}

/// Commands on one key, all of them or none.
pub async fn at_once(c: &Rc<Client>, key: &[u8], requests: &[impl AsRef<[u8]>]) -> Result<(), Vec<u8>> {
    let mut t = Transaction { begun: true, slot: Some(slot(key)), ..Transaction::default() };
    let requests = requests.iter().map(|request| Bytes::copy_from_slice(request.as_ref())).collect();
    let (replies, last) = t.run(c, requests, true).await;
    let refused = replies.iter().find(|reply| reply[..] != *QUEUED);
    match refused.unwrap_or(&last) {
        error if error.starts_with(b"-") => Err(error.to_vec()),
        _ => Ok(()),
    }
}
