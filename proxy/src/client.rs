//! One client: reads its requests, sends each on its way, and keeps its replies in order.
//!
//! What can be sent to a server at once is (`dispatch`); replies find their place in the queue by number (`replies`).
//! What takes several steps (`slow`) begins when all before it is answered, and nothing after it begins before it is
//! done. `input` is the client's own task.

mod dispatch;
mod input;
mod replies;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Waker;

use crate::config::Mode;
use crate::own_writes::Written;
use crate::pubsub::Subscriptions;
use crate::stream::Stream;
use crate::transaction::{Item, Transaction};
use crate::upstream::Conn;
use crate::world::{Ident, Key, NONE, W, add};

pub use dispatch::unknown;
pub use input::serve;
use replies::Replies;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mute {
    Off,
    /// Of the next command.
    Next,
    This,
    All,
}

pub struct Client {
    pub w: W,
    pub id: u64,
    peer: SocketAddr,
    pub laddr: SocketAddr,
    pub since: u64,
    /// The address that it came by, as the configuration says it.
    pub via: Rc<str>,
    io: RefCell<Stream>,
    replies: RefCell<Replies>,
    waker: RefCell<Option<Waker>>,
    /// Parsing has stopped until there is room or quiet.
    paused: Cell<bool>,
    /// Waits for bandwidth.
    pub throttled: Cell<bool>,
    pub closed: Cell<bool>,
    /// Closed when everything is written.
    pub leaving: Cell<bool>,
    pub hold: Cell<bool>,
    /// Something step by step is under way.
    pub busy: Cell<bool>,
    epoch: Cell<u64>,
    pub proto: Cell<u8>,
    pub db: Cell<u32>,
    pub ident: RefCell<Rc<Ident>>,
    pub mute: Cell<Mute>,
    pub name: RefCell<Vec<u8>>,
    pub lib: RefCell<[Vec<u8>; 2]>,
    /// Shared connections in use, by node.
    conns: RefCell<Vec<Option<Rc<Conn>>>>,
    /// split: the replica for the commands under way.
    reader: Cell<u16>,
    /// split: what its replica may not have yet.
    pub written: Cell<Written>,
    pub transaction: RefCell<Option<Transaction>>,
    /// What was read of a transaction in one go, to be told to the server together.
    batch: RefCell<Vec<Item>>,
    pub subscriptions: Subscriptions,
    pub last: Cell<u64>,
    /// When output last moved.
    pub moved: Cell<u64>,
    pub last_cmd: Cell<&'static str>,
}

impl Client {
    pub fn new(w: W, id: u64, stream: Stream, via: Rc<str>) -> std::io::Result<Rc<Client>> {
        Ok(Rc::new(Client {
            w,
            id,
            peer: stream.tcp().peer_addr()?,
            laddr: stream.tcp().local_addr()?,
            since: w.clock(),
            via,
            io: RefCell::new(stream),
            replies: RefCell::default(),
            waker: RefCell::default(),
            paused: Cell::new(false),
            throttled: Cell::new(false),
            closed: Cell::new(false),
            leaving: Cell::new(false),
            hold: Cell::new(false),
            busy: Cell::new(false),
            epoch: Cell::new(0),
            proto: Cell::new(2),
            db: Cell::new(0),
            ident: RefCell::new(w.anonymous.clone()),
            mute: Cell::new(Mute::Off),
            name: RefCell::default(),
            lib: RefCell::default(),
            conns: RefCell::default(),
            reader: Cell::new(NONE),
            written: Cell::default(),
            transaction: RefCell::default(),
            batch: RefCell::default(),
            subscriptions: Subscriptions::default(),
            last: Cell::new(w.now.get()),
            moved: Cell::new(w.now.get()),
            last_cmd: Cell::new("NULL"),
        }))
    }

    /// From where it comes, as others are told.
    pub fn addr(&self) -> SocketAddr {
        if self.w.config.borrow().client_ip {
            return self.peer;
        }
        let [.., high, low] = self.id.to_be_bytes();
        SocketAddr::from(([198, 19, high, low], self.peer.port()))
    }

    pub fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    pub fn lane(&self) -> usize {
        self.id as usize % self.w.config.borrow().limits.connections
    }

    pub fn key(&self, node: u16) -> Key {
        let db = if self.w.mode.get() == Mode::Split { self.db.get() } else { 0 };
        Key { node, ident: self.ident.borrow().id, proto: self.proto.get(), db }
    }

    /// Whether its keys are stored under other names.
    #[inline]
    pub fn prefixed(&self) -> bool {
        self.db.get() > 0 && self.w.databases.get() > 0
    }

    /// The shared connection to a node.
    pub fn conn(&self, node: u16) -> Rc<Conn> {
        let mut conns = self.conns.borrow_mut();
        let at = node as usize;
        if let Some(Some(conn)) = conns.get(at) {
            if !conn.dead.get() {
                return conn.clone();
            }
        }
        let conn = Conn::get(self.w, self.key(node), self.lane(), &self.ident.borrow());
        if conns.len() <= at {
            conns.resize(at + 1, None);
        }
        conns[at] = Some(conn.clone());
        conn
    }

    /// Another identity, database or protocol: other connections.
    pub fn changed(&self) {
        self.conns.borrow_mut().clear();
    }

    pub fn in_flight(&self) -> usize {
        self.replies.borrow().queue.len()
    }

    /// Something has come in.
    #[inline]
    fn heard(&self, n: usize) {
        self.w.hears();
        self.w.bandwidth.spend(n);
        add(&self.w.count.bytes_in, n as u64);
    }

    pub fn encrypted(&self) -> bool {
        self.io.borrow().encrypted()
    }

    pub fn handshaking(&self) -> bool {
        self.io.borrow().handshaking()
    }

    /// Bytes of replies that the client has not taken.
    pub fn backlog(&self) -> usize {
        self.replies.borrow().out.len()
    }
}
