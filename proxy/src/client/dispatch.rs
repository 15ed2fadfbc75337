//! Which way a request goes.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use bytes::Bytes;

use super::{Client, Mute};
use crate::command::{Cmd, subcommand};
use crate::config::Mode;
use crate::databases;
use crate::own_writes;
use crate::resp;
use crate::route::{self, Act, Place};
use crate::slot::slot;
use crate::slow;
use crate::slowlog;
use crate::table::{BLOCKING, PUBSUB, READONLY};
use crate::transaction::{self, Item};
use crate::upstream::{Pending, Sink};
use crate::world::{NONE, add};

pub(super) enum Raw<'a> {
    Slice(&'a [u8]),
    Own(Bytes),
}

impl Raw<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Raw::Slice(data) => data,
            Raw::Own(data) => data,
        }
    }

    fn own(self) -> Bytes {
        match self {
            Raw::Slice(data) => Bytes::copy_from_slice(data),
            Raw::Own(data) => data,
        }
    }
}

/// Something step by step, and whether it may take as long as it likes.
pub(super) type Slow = (Pin<Box<dyn Future<Output = ()>>>, bool);

pub(super) enum Next {
    Go,
    /// Not now: the same command again when there is room or quiet.
    Pause,
    Slow(Slow),
}

impl Client {
    pub(super) fn dispatch(self: &Rc<Self>, raw: Raw<'_>, args: &[(u32, u32)]) -> Next {
        let w = self.w;
        let arg = |i: usize| &raw.bytes()[args[i].0 as usize..args[i].1 as usize];
        let Some(mut cmd) = w.lookup.borrow().find(arg(0)) else {
            let words = (0..args.len()).map(arg).collect::<Vec<_>>();
            return self.answer(&unknown(&words), true);
        };
        let container = !cmd.subs.is_empty() && args.len() > 1;
        if container {
            match subcommand(cmd, arg(1)) {
                Some(sub) => cmd = sub,
                None => {
                    let (word, name) = (String::from_utf8_lossy(arg(1)).into_owned(), cmd.name.to_uppercase());
                    let text = format!("ERR unknown subcommand '{:.128}'. Try {name} HELP.", word);
                    return self.answer(&resp::error(text), true);
                }
            }
        }
        if !cmd.arity_fits(args.len()) {
            let text = format!("ERR wrong number of arguments for '{}' command", cmd.name);
            return self.answer(&resp::error(text), true);
        }
        if w.databases.get() > 0 {
            match databases::rewritten(self, cmd, raw.bytes(), args) {
                Ok(None) => {}
                Ok(Some(raw)) => {
                    let mut parser = resp::Requests::default();
                    return match parser.next(&raw) {
                        Ok(resp::Parsed::Command(_)) => self.direct(Raw::Own(raw.clone()), parser.args(), cmd),
                        _ => self.answer(b"-ERR a key is too long\r\n", true),
                    };
                }
                Err(error) => return self.answer(&error, true),
            }
        }
        self.direct(raw, args, cmd)
    }

    /// Sends on its way what servers can understand.
    fn direct(self: &Rc<Self>, raw: Raw<'_>, args: &[(u32, u32)], cmd: &'static Cmd) -> Next {
        let w = self.w;
        let arg = |i: usize| &raw.bytes()[args[i].0 as usize..args[i].1 as usize];
        let mut act = w.acts.borrow()[cmd.id as usize];
        let transaction = self.transaction.borrow().as_ref().map(|t| t.begun);
        let subscribed = self.subscriptions.active() && self.proto.get() == 2;
        let begins = cmd.name == "multi" && act == Act::Slow && !subscribed && !self.stranger();
        if transaction == Some(true) || begins || !self.batch.borrow().is_empty() {
            return self.queue(raw, args, cmd);
        } else if subscribed || (w.databases.get() > 0 && databases::answers_with_keys(self, cmd)) {
            act = Act::Slow;
        } else if act == Act::Script {
            act = if transaction.is_none() && self.only_reads() { Act::Read } else { Act::Master };
        } else if transaction.is_some() && act == Act::Read {
            // A watched key read from a replica that lags would make WATCH worth nothing.
            act = Act::Master;
        }
        let node = match act {
            Act::Key(at) => w.slots[slot(arg(at as usize)) as usize].get(),
            Act::Any => w.any(),
            Act::Speaker => w.speaker(),
            Act::Master | Act::Script => w.master.get(),
            Act::Read => {
                if self.reader.get() == NONE || self.in_flight() == 0 || self.epoch.get() != w.epoch.get() {
                    self.reader.set(w.reader());
                }
                let replica = self.reader.get();
                if replica != w.master.get() && own_writes::may_lack(self, replica) { w.master.get() } else { replica }
            }
            Act::Keys | Act::Split => {
                let words = (0..args.len()).map(arg).collect::<Vec<_>>();
                match route::place(cmd, &words) {
                    Place::Slot(slot) => w.slots[slot as usize].get(),
                    Place::Anywhere
                        if (cmd.name.starts_with("eval") || cmd.name.starts_with("fcall")) && words[2] == b"0" =>
                    {
                        return self.answer(route::NO_KEYS, true);
                    }
                    Place::Anywhere => w.any(),
                    Place::Many if act == Act::Split => return self.slow(raw, args, cmd),
                    Place::Many => return self.answer(route::CROSSSLOT, true),
                }
            }
            Act::Block if cmd.name.starts_with("xread") => {
                let words = (0..args.len()).map(arg).collect::<Vec<_>>();
                // Wherever the word stands: a key of that name costs a connection, a BLOCK overlooked would hold up all.
                if words.iter().any(|a| a.eq_ignore_ascii_case(b"block")) {
                    return self.slow(raw, args, cmd);
                }
                match (w.mode.get(), route::place(cmd, &words)) {
                    (Mode::Split, _) => w.master.get(),
                    (_, Place::Slot(slot)) => w.slots[slot as usize].get(),
                    (_, Place::Anywhere) => w.any(),
                    (_, Place::Many) => return self.answer(route::CROSSSLOT, true),
                }
            }
            Act::Block | Act::Slow => return self.slow(raw, args, cmd),
            Act::Refuse => {
                let text = match cmd.name.split_once('|') {
                    Some((name, sub)) => {
                        format!("ERR unknown subcommand '{sub}'. Try {} HELP.", name.to_uppercase())
                    }
                    None => {
                        let words = (0..args.len()).map(arg).collect::<Vec<_>>();
                        return self.answer(&unknown(&words), true);
                    }
                };
                return self.answer(&resp::error(text), true);
            }
        };
        // Where the world has changed, or something is on its way for the second time, nothing may overtake it.
        if (self.hold.get() || self.epoch.get() != w.epoch.get()) && self.in_flight() > 0 {
            return Next::Pause;
        }
        self.hold.set(false);
        self.epoch.set(w.epoch.get());
        if node == NONE {
            return self.slow(raw, args, cmd);
        }
        let conn = self.conn(node);
        if conn.full(w.config.borrow().limits.upstream_held) {
            conn.wait_for_room(self);
            return Next::Pause;
        }
        self.begins(cmd, raw.bytes(), args);
        let repeatable = cmd.has(READONLY) && !cmd.has(BLOCKING);
        let reply = self.reserve();
        own_writes::note(self, cmd, Some(reply));
        let mut pending = Pending::new(Sink::Client(self.clone(), reply), repeatable, false);
        pending.timed = Some((cmd, w.heard.get()));
        match raw {
            Raw::Slice(data) => conn.send(data, pending),
            Raw::Own(data) => conn.send_big(data, pending),
        }
        self.ended();
        Next::Go
    }

    /// Counts a command, and takes note of CLIENT REPLY SKIP.
    #[inline]
    fn begins(&self, cmd: &'static Cmd, raw: &[u8], args: &[(u32, u32)]) {
        if self.w.monitors.some() {
            self.w.monitors.note(self, cmd, args.iter().map(|(from, to)| &raw[*from as usize..*to as usize]));
        }
        self.w.stats.begins(cmd);
        add(&self.w.count.commands, 1);
        self.last_cmd.set(cmd.name);
        self.last.set(self.w.now.get());
        if self.mute.get() == Mute::Next {
            self.mute.set(Mute::This);
        }
    }

    #[inline]
    fn ended(&self) {
        if self.mute.get() == Mute::This {
            self.mute.set(Mute::Off);
        }
    }

    /// One to whom servers say nothing before AUTH.
    fn stranger(&self) -> bool {
        self.w.locked.get() && self.ident.borrow().anonymous()
    }

    /// One of those whose scripts write nothing.
    fn only_reads(&self) -> bool {
        let ident = self.ident.borrow();
        let name = ident.user.as_deref().and_then(|user| std::str::from_utf8(user).ok());
        name.is_some_and(|name| self.w.config.borrow().readers.contains(name))
    }

    /// A command of a transaction: it is told to the server with all that comes in together with it.
    fn queue(self: &Rc<Self>, raw: Raw<'_>, args: &[(u32, u32)], cmd: &'static Cmd) -> Next {
        let first = self.batch.borrow().is_empty();
        let alone = matches!(cmd.name, "quit" | "reset") || matches!(self.mute.get(), Mute::Next | Mute::This);
        if self.in_flight() > 0 || (alone && !first) {
            return Next::Pause;
        }
        if alone {
            return self.slow(raw, args, cmd);
        }
        self.begins(cmd, raw.bytes(), args);
        own_writes::note(self, cmd, None);
        self.batch.borrow_mut().push(Item::Command(slow::Request { raw: raw.own(), args: args.to_vec(), cmd }));
        match cmd.name {
            "exec" | "discard" => self.batch().map_or(Next::Go, Next::Slow),
            _ => Next::Go,
        }
    }

    /// What there is of a transaction, if there is anything that was not told yet.
    pub(super) fn batch(self: &Rc<Self>) -> Option<Slow> {
        let items = self.batch.take();
        if items.is_empty() {
            return None;
        }
        let (client, since) = (self.clone(), self.w.clock_us());
        // The last one, EXEC as a rule, stands for all of it.
        let timed = match items.last() {
            Some(Item::Command(request)) => Some((request.cmd, request.raw.clone())),
            _ => None,
        };
        Some(self.step_by_step(false, async move {
            transaction::within(&client, items).await;
            if let Some((cmd, raw)) = timed {
                slowlog::done(&client, cmd, client.w.clock_us() - since, || raw);
            }
        }))
    }

    fn step_by_step(self: &Rc<Self>, waits: bool, steps: impl Future<Output = ()> + 'static) -> Slow {
        self.hold.set(false);
        self.epoch.set(self.w.epoch.get());
        self.busy.set(true);
        let client = self.clone();
        let future = async move {
            steps.await;
            client.busy.set(false);
            client.ended();
        };
        (Box::pin(future), waits)
    }

    /// An answer of our own, in its turn.
    pub(super) fn answer(self: &Rc<Self>, reply: &[u8], failed: bool) -> Next {
        let mut batch = self.batch.borrow_mut();
        if !batch.is_empty() {
            batch.push(Item::Refused(reply.to_vec()));
            return Next::Go;
        }
        if failed {
            if let Some(transaction) = &mut *self.transaction.borrow_mut() {
                transaction.spoil();
            }
        }
        if self.mute.get() == Mute::Next {
            self.mute.set(Mute::This);
        }
        let seq = self.reserve();
        self.deliver(seq, reply);
        self.ended();
        Next::Go
    }

    fn slow(self: &Rc<Self>, raw: Raw<'_>, args: &[(u32, u32)], cmd: &'static Cmd) -> Next {
        if self.in_flight() > 0 {
            return Next::Pause;
        }
        self.begins(cmd, raw.bytes(), args);
        own_writes::note(self, cmd, None);
        let request = slow::Request { raw: raw.own(), args: args.to_vec(), cmd };
        let (client, since, raw) = (self.clone(), self.w.clock_us(), request.raw.clone());
        let waits = cmd.has(BLOCKING) || cmd.name == "monitor";
        Next::Slow(self.step_by_step(waits, async move {
            slow::perform(&client, request).await;
            // What a client waits for at will says nothing of how fast anything is.
            if !cmd.has(BLOCKING | PUBSUB) {
                slowlog::done(&client, cmd, client.w.clock_us() - since, || raw);
            }
        }))
    }
}

pub fn unknown(words: &[&[u8]]) -> Vec<u8> {
    let mut text = Vec::from("ERR unknown command '");
    text.extend_from_slice(&words[0][..words[0].len().min(128)]);
    text.extend_from_slice(b"', with args beginning with: ");
    let mut left = 128usize;
    for word in &words[1..] {
        if left == 0 {
            break;
        }
        let shown = &word[..word.len().min(left)];
        text.push(b'\'');
        text.extend_from_slice(shown);
        text.extend_from_slice(b"' ");
        left = left.saturating_sub(shown.len() + 3);
    }
    resp::error(text)
}
