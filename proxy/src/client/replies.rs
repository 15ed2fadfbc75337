//! The replies of one client: each waits in the queue until those before it are there, then it is written.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::rc::Rc;

use bytes::Bytes;

use super::{Client, Mute};
use crate::bandwidth;
use crate::buf::Outgoing;
use crate::upstream::Conn;
use crate::world::add;

const SHORT: usize = 38;

/// The reply to one command, in the order of the commands.
pub(super) enum Slot {
    Waiting,
    Short(u8, [u8; SHORT]),
    Long(Bytes),
    /// CLIENT REPLY OFF: nobody wants it.
    Muted,
    Done,
}

#[derive(Default)]
pub(super) struct Replies {
    /// The number of the first in the queue.
    base: u64,
    pub(super) queue: VecDeque<Slot>,
    pub(super) out: Outgoing,
    /// Bytes in the queue, whose turn is still to come.
    pub(super) held: usize,
    /// A large reply is half out: nothing may be put between its pieces.
    streaming: bool,
    /// Pushes that have to wait for that.
    pushes: Vec<Bytes>,
    dirty: bool,
    /// The socket takes no more for now.
    pub(super) blocked: bool,
    /// The server connection that waits until this client has taken what it was sent.
    pub(super) source: Option<Rc<Conn>>,
}

impl Replies {
    /// Whether all that waits is no more than this; a single reply is never too much.
    fn fit(&self, limit: usize) -> bool {
        let all = self.held + self.out.len();
        if all <= limit {
            return true;
        }
        let longest = self.queue.iter().map(|slot| if let Slot::Long(data) = slot { data.len() } else { 0 }).max();
        // Of the first piece a part may be written.
        all.saturating_sub(self.out.longest().max(longest.unwrap_or(0))) <= limit
    }
}

impl Client {
    /// A place for the reply to a command that is being sent.
    #[inline]
    pub(super) fn reserve(&self) -> u64 {
        let mut replies = self.replies.borrow_mut();
        let muted = self.mute.get() != Mute::Off && self.muted();
        replies.queue.push_back(if muted { Slot::Muted } else { Slot::Waiting });
        replies.base + replies.queue.len() as u64 - 1
    }

    pub fn muted(&self) -> bool {
        matches!(self.mute.get(), Mute::All | Mute::This)
    }

    #[inline]
    pub fn deliver(self: &Rc<Self>, seq: u64, reply: &[u8]) {
        let mut replies = self.replies.borrow_mut();
        if self.closed.get() || seq < replies.base {
            return;
        }
        let at = (seq - replies.base) as usize;
        if at > 0 {
            let muted = matches!(replies.queue[at], Slot::Muted);
            replies.held += if muted || reply.len() <= SHORT { 0 } else { reply.len() };
            let slot = &mut replies.queue[at];
            *slot = match slot {
                Slot::Muted => Slot::Done,
                _ if reply.len() <= SHORT => {
                    let mut short = [0; SHORT];
                    short[..reply.len()].copy_from_slice(reply);
                    Slot::Short(reply.len() as u8, short)
                }
                _ => Slot::Long(Bytes::copy_from_slice(reply)),
            };
            self.bound(&replies);
            return;
        }
        if !matches!(replies.queue[0], Slot::Muted) {
            replies.out.push(reply);
        }
        self.next(&mut replies);
        self.changed_output(&mut replies);
    }

    pub fn deliver_big(self: &Rc<Self>, seq: u64, reply: Bytes) {
        let mut replies = self.replies.borrow_mut();
        if self.closed.get() || seq < replies.base {
            return;
        }
        let at = (seq - replies.base) as usize;
        let slot = &mut replies.queue[at];
        if matches!(slot, Slot::Muted) {
            *slot = Slot::Done;
        } else {
            let len = reply.len();
            *slot = Slot::Long(reply);
            replies.held += len;
        }
        if at == 0 {
            self.ready(&mut replies);
            self.changed_output(&mut replies);
        }
        self.bound(&replies);
    }

    /// Whoever takes too little of what he has asked for is cut.
    fn bound(&self, replies: &Replies) -> bool {
        let fits = replies.fit(self.w.config.borrow().limits.output_limit);
        if !fits {
            add(&self.w.count.cut, 1);
            self.cut();
        }
        fits
    }

    /// The first is answered.
    #[inline]
    fn next(&self, replies: &mut Replies) {
        replies.queue.pop_front();
        replies.base += 1;
        if !matches!(replies.queue.front(), None | Some(Slot::Waiting | Slot::Muted)) {
            self.ready(replies);
        }
    }

    fn ready(&self, replies: &mut Replies) {
        loop {
            match replies.queue.front() {
                None | Some(Slot::Waiting | Slot::Muted) => return,
                _ => {}
            }
            match replies.queue.pop_front() {
                Some(Slot::Short(len, data)) => replies.out.push(&data[..len as usize]),
                Some(Slot::Long(data)) => {
                    replies.held -= data.len();
                    replies.out.push_big(data);
                }
                _ => {}
            }
            replies.base += 1;
        }
    }

    #[inline]
    fn changed_output(self: &Rc<Self>, replies: &mut Replies) {
        if !replies.dirty {
            replies.dirty = true;
            self.w.dirty(self);
        }
    }

    /// A reply of a command that is done step by step; nothing is in the queue then.
    pub fn emit(self: &Rc<Self>, reply: &[u8]) {
        if self.closed.get() || self.muted() {
            return;
        }
        let mut replies = self.replies.borrow_mut();
        replies.out.push(reply);
        self.changed_output(&mut replies);
    }

    pub fn emit_big(self: &Rc<Self>, reply: Bytes) {
        if self.closed.get() || self.muted() {
            return;
        }
        let mut replies = self.replies.borrow_mut();
        replies.out.push_big(reply);
        self.changed_output(&mut replies);
    }

    /// Something that is no reply: it may come at any time, but not in the middle of one.
    pub fn push(self: &Rc<Self>, push: Bytes) {
        if self.closed.get() {
            return;
        }
        let mut replies = self.replies.borrow_mut();
        if replies.streaming {
            replies.pushes.push(push);
        } else {
            replies.out.push_big(push);
        }
        self.changed_output(&mut replies);
    }

    /// Whether this reply is still to come, or to be sent.
    pub fn is_open(&self, seq: u64) -> bool {
        seq >= self.replies.borrow().base
    }

    pub fn is_next(&self, seq: u64) -> bool {
        let replies = self.replies.borrow();
        replies.base == seq && matches!(replies.queue.front(), Some(Slot::Waiting)) && !self.closed.get()
    }

    pub fn stream_begin(&self) {
        self.replies.borrow_mut().streaming = true;
    }

    pub fn stream(self: &Rc<Self>, data: Bytes) {
        if self.closed.get() {
            return;
        }
        let mut replies = self.replies.borrow_mut();
        replies.out.push_big(data);
        self.changed_output(&mut replies);
    }

    pub fn stream_end(self: &Rc<Self>, _seq: u64) {
        if self.closed.get() {
            return;
        }
        let mut replies = self.replies.borrow_mut();
        replies.streaming = false;
        for push in std::mem::take(&mut replies.pushes) {
            replies.out.push_big(push);
        }
        self.next(&mut replies);
        self.changed_output(&mut replies);
    }

    /// Wakes this connection when the client has taken most of what it was sent.
    pub fn wakes(&self, conn: &Rc<Conn>) {
        self.replies.borrow_mut().source = Some(conn.clone());
    }

    /// Sends what there is, as far as the socket takes it.
    pub fn flush(self: &Rc<Self>) {
        let mut replies = self.replies.borrow_mut();
        replies.dirty = false;
        if self.closed.get() {
            return;
        }
        let limits = &self.w.config.borrow().limits;
        if !replies.blocked {
            let mut io = self.io.borrow_mut();
            let limited = self.w.bandwidth.limited();
            while !replies.out.is_empty() || io.unsent() {
                let mut slices = [IoSlice::new(&[]); 32];
                let mut n = 1;
                if !limited || replies.out.is_empty() {
                    n = replies.out.slices(&mut slices);
                } else if self.w.bandwidth.open(self.w) {
                    slices[0] = IoSlice::new(replies.out.piece(bandwidth::PIECE));
                } else {
                    self.w.bandwidth.wait(self);
                    break;
                }
                let wrote = if n == 0 { io.push().map(|()| 0) } else { io.try_write(&slices[..n]) };
                match wrote {
                    Ok(n) => {
                        replies.out.wrote(n);
                        add(&self.w.count.bytes_out, n as u64);
                        self.w.bandwidth.spend(n);
                        self.moved.set(self.w.now.get());
                    }
                    Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                        replies.blocked = true;
                        self.wake();
                        break;
                    }
                    Err(_) => {
                        self.cut();
                        return;
                    }
                }
            }
        }
        if !self.bound(&replies) {
            return;
        }
        if replies.source.is_some() && replies.out.len() <= limits.output_pause / 2 {
            if let Some(conn) = replies.source.take() {
                conn.wake();
            }
        }
        let quiet = replies.queue.is_empty();
        let room =
            replies.queue.len() <= limits.in_flight / 2 && replies.out.len() + replies.held <= limits.output_pause / 2;
        if (self.paused.get() && (quiet || (room && !self.hold.get()))) || (self.leaving.get() && quiet) {
            self.wake();
        }
    }

    /// Whether a server connection waits for this client to take what it was sent.
    pub fn holds_up(&self) -> bool {
        self.replies.borrow().source.is_some()
    }

    /// Ends the client now.
    pub fn cut(&self) {
        if !self.closed.replace(true) {
            self.wake();
        }
        if let Ok(mut replies) = self.replies.try_borrow_mut() {
            if let Some(conn) = replies.source.take() {
                conn.wake();
            }
        }
    }
}
