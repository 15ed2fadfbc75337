//! What all parts of the process share. There is one thread, so there is one `World`, and it is never dropped.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustls::ServerConfig;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::bandwidth::Bandwidth;
use crate::client::Client;
use crate::command::Lookup;
use crate::config::{Config, Mode};
use crate::dedicated::Dedicated;
use crate::keyspace::Census;
use crate::monitor::Monitors;
use crate::own_writes::Offsets;
use crate::route::Act;
use crate::slot::SLOTS;
use crate::slowlog::Slowlog;
use crate::split::Before;
use crate::stats::Stats;
use crate::upstream::Conn;

pub type W = &'static World;

/// A server whose place another one has taken may take so long for a reply.
pub const REPLACED_MS: u64 = 500;

/// No node.
pub const NONE: u16 = u16::MAX;

/// Who a client is to the servers.
#[derive(Debug, PartialEq, Eq)]
pub struct Ident {
    pub id: u32,
    pub user: Option<Vec<u8>>,
    pub password: Option<Vec<u8>>,
}

impl Ident {
    pub fn anonymous(&self) -> bool {
        self.password.is_none()
    }
}

/// Connections with the same key are interchangeable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    pub node: u16,
    pub ident: u32,
    pub proto: u8,
    pub db: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Master,
    Replica,
    Unknown,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Role::Master => "master",
            Role::Replica => "replica",
            Role::Unknown => "unknown",
        }
    }
}

pub struct Node {
    pub addr: String,
    pub role: Cell<Role>,
    /// It answered lately; split: may serve.
    pub healthy: Cell<bool>,
    pub weight: Cell<u32>,
    /// split: what it said last.
    pub before: Cell<Before>,
    /// cluster: of a replica, its master.
    pub follows: Cell<u16>,
    /// split: how much of the replication it was last known to have.
    pub offset: Cell<i64>,
    /// Of the smooth weighted round.
    pub current: Cell<i64>,
}

#[derive(Default)]
pub struct Counters {
    pub commands: Cell<u64>,
    pub accepted: Cell<u64>,
    pub rejected: Cell<u64>,
    pub cut: Cell<u64>,
    pub redirected: Cell<u64>,
    pub retried: Cell<u64>,
    pub refreshes: Cell<u64>,
    /// From and to clients.
    pub bytes_in: Cell<u64>,
    pub bytes_out: Cell<u64>,
    /// From and to servers.
    pub server_in: Cell<u64>,
    pub server_out: Cell<u64>,
}

pub fn add(cell: &Cell<u64>, n: u64) {
    cell.set(cell.get() + n);
}

pub struct World {
    pub path: PathBuf,
    pub config: RefCell<Rc<Config>>,
    pub mode: Cell<Mode>,
    /// The configuration for which servers were found.
    pub known: RefCell<Option<Rc<Config>>>,
    pub lookup: RefCell<Lookup>,
    pub acts: RefCell<Vec<Act>>,
    pub nodes: RefCell<Vec<Rc<Node>>>,
    pub slots: Vec<Cell<u16>>,
    /// split: the node that takes writes.
    pub master: Cell<u16>,
    pub read_own_writes: Cell<bool>,
    pub offsets: Offsets,
    /// Raised when commands may have to go elsewhere than those before them.
    pub epoch: Cell<u64>,
    pub version: RefCell<String>,
    pub pools: RefCell<HashMap<(Key, usize), Rc<Conn>>>,
    pub idle: RefCell<HashMap<Key, Vec<Dedicated>>>,
    idents: RefCell<HashMap<u32, Weak<Ident>>>,
    last_ident: Cell<u32>,
    pub anonymous: Rc<Ident>,
    pub clients: RefCell<HashMap<u64, Rc<Client>>>,
    dirty: RefCell<Vec<Rc<Client>>>,
    flusher: Notify,
    pub scratch: RefCell<Vec<u8>>,
    /// cluster: how many databases there are; 0: one, and nothing is made of it.
    pub databases: Cell<u32>,
    pub census: RefCell<Census>,
    pub count: Counters,
    pub stats: Stats,
    pub slowlog: Slowlog,
    pub monitors: Monitors,
    pub bandwidth: Bandwidth,
    /// What clients are to speak; None: no TLS.
    pub tls: RefCell<Option<Arc<ServerConfig>>>,
    /// Who accepts at which address.
    pub listeners: RefCell<HashMap<String, AbortHandle>>,
    last_client: Cell<u64>,
    pub refresh: Notify,
    /// cluster: the topology was looked at.
    pub looked: Notify,
    /// Commands may have to go elsewhere than those before them.
    pub moved: Notify,
    /// The longest argument that the servers take.
    pub max_bulk: Cell<i64>,
    /// Servers answer nobody who has not said who he is.
    pub locked: Cell<bool>,
    pub stopping: Cell<bool>,
    pub turn: Cell<u64>,
    started: Instant,
    /// Milliseconds since start, moved on ten times a second.
    pub now: Cell<u64>,
    /// Microseconds since start when something was last read.
    pub heard: Cell<u64>,
}

impl World {
    pub fn new(path: PathBuf, config: Config, tls: Option<Arc<ServerConfig>>) -> W {
        let world = World {
            path,
            mode: Cell::new(config.mode),
            known: RefCell::default(),
            acts: RefCell::new(crate::route::acts(&config)),
            lookup: RefCell::new(Lookup::new(&config.rename)),
            nodes: RefCell::default(),
            slots: vec![Cell::new(NONE); SLOTS],
            master: Cell::new(NONE),
            read_own_writes: Cell::new(false),
            offsets: Offsets::default(),
            config: RefCell::new(Rc::new(config)),
            epoch: Cell::new(0),
            version: RefCell::new("7.0.0".into()),
            pools: RefCell::default(),
            idle: RefCell::default(),
            idents: RefCell::default(),
            last_ident: Cell::new(0),
            anonymous: Rc::new(Ident { id: 0, user: None, password: None }),
            clients: RefCell::default(),
            dirty: RefCell::default(),
            flusher: Notify::new(),
            scratch: RefCell::new(vec![0; 64 * 1024]),
            databases: Cell::new(0),
            census: RefCell::default(),
            count: Counters::default(),
            stats: Stats::default(),
            slowlog: Slowlog::default(),
            monitors: Monitors::default(),
            bandwidth: Bandwidth::default(),
            tls: RefCell::new(tls),
            listeners: RefCell::default(),
            last_client: Cell::new(0),
            refresh: Notify::new(),
            looked: Notify::new(),
            moved: Notify::new(),
            max_bulk: Cell::new(crate::resp::MAX_BULK),
            locked: Cell::new(false),
            stopping: Cell::new(false),
            turn: Cell::new(0),
            started: Instant::now(),
            now: Cell::new(1),
            heard: Cell::new(0),
        };
        let config = world.config();
        world.apply(&config);
        Box::leak(Box::new(world))
    }

    /// What is not looked up where it is used.
    pub fn apply(&self, config: &Config) {
        self.read_own_writes.set(config.mode == Mode::Split && config.read_own_writes);
        self.databases.set(if config.mode == Mode::Cluster { config.multi_db } else { 0 });
        self.stats.slow_from(config.slowlog.slower_than_us);
        self.slowlog.trim(config.slowlog.max_len);
        self.bandwidth.limit(config.limits.bandwidth_mbit);
        if config.limits.max_argument > 0 {
            self.max_bulk.set(config.limits.max_argument.into());
        }
    }

    /// A number for a client that no other has, here and in the other processes of this machine.
    pub fn next_client(&self) -> u64 {
        self.last_client.set(self.last_client.get() + 1);
        u64::from(std::process::id()) << 31 | self.last_client.get()
    }

    pub fn all_clients(&self) -> Vec<Rc<Client>> {
        self.clients.borrow().values().cloned().collect()
    }

    /// A request of the proxy's own, by the name that the servers have for the command.
    pub fn request<T: AsRef<[u8]>>(&self, words: &[T]) -> Bytes {
        let mut words: Vec<&[u8]> = words.iter().map(AsRef::as_ref).collect();
        let lookup = self.lookup.borrow();
        if let Some(name) = lookup.name(words[0]) {
            words[0] = name.as_bytes();
        }
        crate::resp::request(&words).into()
    }

    pub fn config(&self) -> Rc<Config> {
        self.config.borrow().clone()
    }

    pub fn clock(&self) -> u64 {
        self.started.elapsed().as_millis() as u64 + 1
    }

    pub fn clock_us(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }

    /// Something was read: commands and replies in it are as old as that.
    #[inline]
    pub fn hears(&self) {
        self.heard.set(self.clock_us());
    }

    pub fn bump(&self) {
        self.epoch.set(self.epoch.get() + 1);
        self.moved.notify_waiters();
    }

    /// Whether a node has been replaced: what is still asked of it, it need not answer.
    pub fn replaced(&self, node: u16) -> bool {
        let nodes = self.nodes.borrow();
        let Some(known) = nodes.get(node as usize) else { return false };
        match self.mode.get() {
            Mode::Split => self.master.get() != NONE && self.master.get() != node && !known.healthy.get(),
            Mode::Cluster => known.role.get() == Role::Unknown && self.slots.iter().any(|slot| slot.get() != NONE),
        }
    }

    /// Over when a node has been replaced for `REPLACED_MS`.
    pub async fn until_replaced(&self, node: u16) {
        loop {
            let moved = self.moved.notified();
            if self.replaced(node) {
                tokio::time::sleep(Duration::from_millis(REPLACED_MS)).await;
                if self.replaced(node) {
                    return;
                }
            }
            moved.await;
        }
    }

    /// The node of an address; its number is never given to another one.
    pub fn node(&self, addr: &str) -> u16 {
        let mut nodes = self.nodes.borrow_mut();
        if let Some(at) = nodes.iter().position(|n| n.addr == addr) {
            return at as u16;
        }
        nodes.push(Rc::new(Node {
            addr: addr.into(),
            role: Cell::new(Role::Unknown),
            healthy: Cell::new(false),
            weight: Cell::new(1),
            before: Cell::new(Before { role: Role::Unknown, offset: -1, heard: 0 }),
            follows: Cell::new(NONE),
            offset: Cell::new(-1),
            current: Cell::new(0),
        }));
        nodes.len() as u16 - 1
    }

    pub fn known_node(&self, addr: &[u8]) -> Option<u16> {
        self.nodes.borrow().iter().position(|n| n.addr.as_bytes() == addr).map(|n| n as u16)
    }

    pub fn addr(&self, node: u16) -> String {
        self.nodes.borrow().get(node as usize).map_or("-".into(), |n| n.addr.clone())
    }

    /// The nodes that have slots, by the lowest slot of each; in split mode the master.
    pub fn masters(&self) -> Vec<u16> {
        if self.mode.get() == Mode::Split {
            return if self.master.get() == NONE { vec![] } else { vec![self.master.get()] };
        }
        let mut out: Vec<u16> = Vec::new();
        let mut last = NONE;
        for cell in &self.slots {
            let node = cell.get();
            if node != last && node != NONE && !out.contains(&node) {
                out.push(node);
            }
            last = node;
        }
        out
    }

    /// cluster: a replica of each of these masters, in turn; the master where there is none.
    pub fn replicas(&self, masters: &[u16]) -> Vec<u16> {
        let nodes = self.nodes.borrow();
        let turn = self.turn.get() as usize;
        self.turn.set(self.turn.get() + 1);
        let one_of = |master: u16| {
            let follows = |at: &u16| nodes[*at as usize].healthy.get() && nodes[*at as usize].follows.get() == master;
            let all: Vec<u16> = (0..nodes.len() as u16).filter(follows).collect();
            if all.is_empty() { master } else { all[turn % all.len()] }
        };
        masters.iter().map(|master| one_of(*master)).collect()
    }

    /// All nodes on which scripts must be known.
    pub fn script_nodes(&self) -> Vec<u16> {
        let mut out = self.masters();
        if self.mode.get() == Mode::Split {
            let nodes = self.nodes.borrow();
            let master = self.master.get();
            out.extend((0..nodes.len() as u16).filter(|n| *n != master && nodes[*n as usize].healthy.get()));
        }
        out
    }

    /// The node for PUBLISH and SUBSCRIBE if they all go to one shard, else any.
    pub fn speaker(&self) -> u16 {
        let fixed = self.mode.get() == Mode::Cluster && self.config.borrow().dispatch_pubsub_to_fixed_shard;
        if fixed { self.slots[0].get() } else { self.any() }
    }

    /// A node for commands that any can answer.
    pub fn any(&self) -> u16 {
        if self.mode.get() == Mode::Split {
            return self.master.get();
        }
        let start = self.turn.get() as usize % SLOTS;
        self.turn.set(self.turn.get() + 5461);
        (0..3)
            .map(|i| self.slots[(start + i * 5461) % SLOTS].get())
            .find(|n| *n != NONE)
            .unwrap_or_else(|| self.slots.iter().map(Cell::get).find(|n| *n != NONE).unwrap_or(NONE))
    }

    /// split: the node for reads, by weight; the master when no replica serves.
    pub fn reader(&self) -> u16 {
        let nodes = self.nodes.borrow();
        let mut total = 0;
        let mut best = NONE;
        let mut most = i64::MIN;
        for (i, node) in nodes.iter().enumerate() {
            if node.role.get() != Role::Replica || !node.healthy.get() || node.weight.get() == 0 {
                continue;
            }
            let weight = i64::from(node.weight.get());
            node.current.set(node.current.get() + weight);
            total += weight;
            if node.current.get() > most {
                (most, best) = (node.current.get(), i as u16);
            }
        }
        match nodes.get(best as usize) {
            Some(node) => {
                node.current.set(node.current.get() - total);
                best
            }
            None => self.master.get(),
        }
    }

    /// The identity of these credentials. It lives as long as a client or a connection has it.
    pub fn ident(&self, user: Option<&[u8]>, password: &[u8]) -> Rc<Ident> {
        let mut idents = self.idents.borrow_mut();
        let found = idents.values().filter_map(Weak::upgrade);
        for ident in found {
            if ident.user.as_deref() == user && ident.password.as_deref() == Some(password) {
                return ident;
            }
        }
        idents.retain(|_, ident| ident.strong_count() > 0);
        // Never a number that was given before: connections that are kept know their owner by it.
        let id = self.last_ident.get() + 1;
        self.last_ident.set(id);
        let ident = Rc::new(Ident { id, user: user.map(<[u8]>::to_vec), password: Some(password.to_vec()) });
        idents.insert(id, Rc::downgrade(&ident));
        ident
    }

    /// The account of the proxy itself.
    pub fn own_ident(&self) -> Rc<Ident> {
        let config = self.config();
        match &config.password {
            Some(password) => self.ident(config.user.as_ref().map(String::as_bytes), password.as_bytes()),
            None => self.anonymous.clone(),
        }
    }

    /// Notes that a client has something to be sent; `flush` does so once in a turn of the loop.
    pub fn dirty(&self, client: &Rc<Client>) {
        let mut dirty = self.dirty.borrow_mut();
        dirty.push(client.clone());
        if dirty.len() == 1 {
            self.flusher.notify_one();
        }
    }

    /// Sends every client what has gathered for it, after all connections that have something to say were heard.
    pub async fn flush(&self) {
        let mut some = Vec::new();
        loop {
            self.flusher.notified().await;
            std::mem::swap(&mut some, &mut *self.dirty.borrow_mut());
            for client in some.drain(..) {
                client.flush();
            }
        }
    }
}
