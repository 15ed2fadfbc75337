//! The process: listens, accepts, keeps the topology fresh, looks after what nobody else notices, and stops.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_local;
use tokio::time::sleep;

use crate::client::{self, Client};
use crate::config::{Config, Mode};
use crate::stream::Stream;
use crate::world::{REPLACED_MS, W, add};
use crate::{cluster, control, split, state};

/// Shared connections that nobody used for so long are closed.
const UNUSED_MS: u64 = 60_000;
/// How long a client may take to agree on how to speak TLS.
const HANDSHAKE_MS: u64 = 10_000;

pub async fn run(w: W) -> Result<(), String> {
    let config = w.config();
    let mut stop = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| e.to_string())?;
    let listeners = open_new(w, &config)?;
    let _control = match &config.control {
        Some(path) => Some(control::serve(w, path)?),
        None => None,
    };
    spawn_local(tick(w));
    spawn_local(w.flush());
    spawn_local(w.bandwidth.serve(w));
    // Clients that come before the topology is known wait for it in their first command.
    spawn_local(keep_fresh(w));
    spawn_local(leave_replaced(w));
    spawn_local(cluster::look_after_masters(w));
    adopt(w, listeners, false);
    eprintln!("cacheyard-proxy: serving {} for {}", config.listen.join(", "), config.servers.join(", "));
    std::future::poll_fn(|cx| {
        if stop.poll_recv(cx).is_ready() || interrupt.poll_recv(cx).is_ready() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    w.stopping.set(true);
    w.listeners.borrow_mut().drain().for_each(|(_, task)| task.abort());
    let until = Instant::now() + Duration::from_millis(w.config().times.stop_ms);
    loop {
        // Who has everything that was asked for is let go.
        let clients = w.all_clients();
        if clients.is_empty() || Instant::now() > until {
            return Ok(());
        }
        for client in clients {
            if client.subscriptions.active() {
                client.cut();
            }
            client.leaving.set(true);
            client.wake();
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Listens where the configuration says and nobody listens yet.
pub fn open_new(w: W, config: &Config) -> Result<Vec<(String, TcpListener)>, String> {
    let listeners = w.listeners.borrow();
    let wanted: BTreeSet<&String> = config.listen.iter().collect();
    let new = wanted.into_iter().filter(|addr| !listeners.contains_key(*addr));
    new.map(|addr| Ok((addr.clone(), listen(addr)?))).collect()
}

/// Accepts at these addresses too, and no longer at those that the configuration has not. `switched`: TLS was
/// switched on or off.
pub fn adopt(w: W, opened: Vec<(String, TcpListener)>, switched: bool) {
    let config = w.config();
    let mut listeners = w.listeners.borrow_mut();
    for (addr, listener) in opened {
        let task = spawn_local(accept(w, listener, addr.as_str().into())).abort_handle();
        listeners.insert(addr, task);
    }
    listeners.retain(|addr, task| {
        let stays = config.listen.contains(addr);
        if !stays {
            task.abort();
        }
        stays
    });
    let close = switched && config.tls.as_ref().is_none_or(|tls| tls.close_others);
    for client in w.all_clients() {
        // Its database is gone.
        let homeless = config.mode == Mode::Cluster && client.db.get() > 0 && client.db.get() >= config.multi_db;
        let other = homeless || close && client.encrypted() != config.tls.is_some();
        if other || !listeners.contains_key(&*client.via) {
            client.cut();
        }
    }
}

fn listen(addr: &str) -> Result<TcpListener, String> {
    let open = || -> std::io::Result<TcpListener> {
        let addr: SocketAddr = addr.parse().map_err(std::io::Error::other)?;
        let socket = socket2::Socket::new(socket2::Domain::for_address(addr), socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        socket.listen(1024)?;
        TcpListener::from_std(socket.into())
    };
    open().map_err(|e| format!("{addr}: {e}"))
}

async fn accept(w: W, listener: TcpListener, addr: Rc<str>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // No file left, as a rule: some may come free.
            Err(_) => {
                sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        if w.clients.borrow().len() >= w.config().limits.maxclients {
            add(&w.count.rejected, 1);
            if w.tls.borrow().is_none() {
                let _ = stream.try_write(b"-ERR max number of clients reached\r\n");
            }
            continue;
        }
        add(&w.count.accepted, 1);
        welcome(w, stream, addr.clone());
    }
}

fn welcome(w: W, stream: TcpStream, via: Rc<str>) {
    let _ = stream.set_nodelay(true);
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(20))
        .with_retries(3);
    let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive);
    let stream = Stream::new(stream, w.tls.borrow().as_ref());
    let Ok(client) = stream.and_then(|stream| Client::new(w, w.next_client(), stream, via)) else { return };
    let id = client.id;
    w.clients.borrow_mut().insert(id, client.clone());
    spawn_local(async move {
        client::serve(client).await;
        w.clients.borrow_mut().remove(&id);
    });
}

pub async fn refresh(w: W) -> bool {
    match w.mode.get() {
        Mode::Cluster => cluster::refresh(w).await,
        Mode::Split => split::refresh(w).await,
    }
}

async fn keep_fresh(w: W) {
    loop {
        let config = w.config();
        let known = refresh(w).await;
        *w.known.borrow_mut() = known.then_some(config);
        // As long as somebody is missing it looks often: a new cluster, or a failover, is seen at once.
        let pause = if state::ready(w) { w.config().times.refresh_ms } else { 100 };
        // Those who ask for a look at once get it, but not more than fifty times a second.
        sleep(Duration::from_millis(20)).await;
        let _ = tokio::time::timeout(Duration::from_millis(pause), w.refresh.notified()).await;
    }
}

async fn tick(w: W) {
    let (mut turn, mut most) = (0u64, 0);
    loop {
        sleep(Duration::from_millis(100)).await;
        w.now.set(w.clock());
        turn += 1;
        if turn % 10 == 0 {
            w.stats.tick([w.count.commands.get(), w.count.bytes_in.get(), w.count.bytes_out.get()]);
            look_after(w);
        }
        if turn % 20 == 0 {
            give_back(w, &mut most);
        }
        if turn % 600 == 0 {
            // Those that are in use are not here.
            w.idle.borrow_mut().clear();
        }
    }
}

/// What malloc keeps of what was freed goes back to the system when clients or their replies have become fewer.
fn give_back(w: W, most: &mut usize) {
    let kept = |client: &Rc<Client>| client.backlog() + 16 * 1024;
    let now = w.clients.borrow().values().map(kept).sum::<usize>();
    *most = now.max(*most);
    if now + (16 << 20) < *most {
        *most = now;
        // SAFETY: it touches nothing but malloc's own free memory.
        unsafe { libc::malloc_trim(0) };
    }
}

/// What is owed by a server that was replaced is not waited for much longer.
async fn leave_replaced(w: W) {
    loop {
        w.moved.notified().await;
        // It may just be about to say that it is no master any more.
        sleep(Duration::from_millis(REPLACED_MS + 100)).await;
        while leave_silent(w) {
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Whether a server that was replaced still owes something.
fn leave_silent(w: W) -> bool {
    let conns: Vec<_> = w.pools.borrow().values().cloned().collect();
    let owing: Vec<_> = conns.iter().filter(|conn| conn.in_flight() > 0 && w.replaced(conn.key.node)).collect();
    for conn in &owing {
        if w.now.get().saturating_sub(conn.owed.get()) >= REPLACED_MS {
            conn.kill();
        }
    }
    !owing.is_empty()
}

fn look_after(w: W) {
    let config = w.config();
    let now = w.now.get();
    for client in w.all_clients() {
        let idle = now.saturating_sub(client.last.get().max(client.moved.get())) > config.times.idle_s * 1000;
        let waits = client.in_flight() > 0 || client.busy.get() || client.subscriptions.active();
        if config.times.idle_s > 0 && idle && !waits {
            client.cut();
        }
        if client.handshaking() && now.saturating_sub(client.since) > HANDSHAKE_MS {
            client.cut();
        }
        let stalls = client.holds_up() && !client.throttled.get();
        if stalls && now.saturating_sub(client.moved.get()) > config.times.stall_ms {
            add(&w.count.cut, 1);
            client.cut();
        }
    }
    let conns: Vec<_> = w.pools.borrow().values().cloned().collect();
    for conn in conns {
        if conn.in_flight() > 0 {
            conn.used.set(now);
            if conn.ready.get() && now.saturating_sub(conn.owed.get()) > config.times.reply_ms {
                conn.kill();
            }
        } else if conn.owed.get() > conn.used.get() {
            conn.used.set(conn.owed.get());
        } else if now.saturating_sub(conn.used.get()) > UNUSED_MS && conn.key.ident != 0 {
            conn.kill();
        }
    }
}
