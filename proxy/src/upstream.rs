//! One connection to a server, shared by all clients of one account.
//!
//! Requests of many clients go out in one write; replies come back in the same order and are handed to whoever
//! waits. A request is kept until its reply is there: if a server says that somebody else has the slot, or dies
//! before it was asked, the request goes on its way again (`retry`).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::IoSlice;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::buf::{BIG, Requests};
use crate::client::Client;
use crate::command::Cmd;
use crate::dedicated::unless;
use crate::resp::{self, MAX_BULK, Replies};
use crate::retry;
use crate::slowlog;
use crate::world::{Ident, Key, W, add};

/// Where a reply goes.
pub enum Sink {
    Client(Rc<Client>, u64),
    Call(Rc<Call>),
    Ignore,
}

/// Somebody inside who waits for a reply.
#[derive(Default)]
pub struct Call {
    reply: RefCell<Option<Bytes>>,
    waker: RefCell<Option<Waker>>,
}

impl Call {
    fn set(&self, reply: Bytes) {
        *self.reply.borrow_mut() = Some(reply);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    async fn wait(&self) -> Bytes {
        poll_fn(|cx| match self.reply.borrow_mut().take() {
            Some(reply) => Poll::Ready(reply),
            None => {
                *self.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
        })
        .await
    }
}

impl Sink {
    pub fn deliver(&self, reply: &[u8]) {
        match self {
            Sink::Client(client, seq) => client.deliver(*seq, reply),
            Sink::Call(call) => call.set(Bytes::copy_from_slice(reply)),
            Sink::Ignore => {}
        }
    }

    fn deliver_big(&self, reply: Bytes) {
        match self {
            Sink::Client(client, seq) => client.deliver_big(*seq, reply),
            Sink::Call(call) => call.set(reply),
            Sink::Ignore => {}
        }
    }

    pub fn gone(&self) -> bool {
        matches!(self, Sink::Client(client, _) if client.closed.get())
    }
}

/// A request without its reply.
pub struct Pending {
    pub sink: Sink,
    pub len: u32,
    pub tries: u8,
    /// Doing it twice is as good as doing it once.
    pub repeatable: bool,
    /// For this node and no other.
    pub fixed: bool,
    /// When it first failed; 0: it has not.
    pub failed: u64,
    /// Of a client's own command: what it is, and since when (microseconds) the client waits.
    pub timed: Option<(&'static Cmd, u64)>,
}

impl Pending {
    pub fn new(sink: Sink, repeatable: bool, fixed: bool) -> Pending {
        Pending { sink, len: 0, tries: 0, repeatable, fixed, failed: 0, timed: None }
    }
}

/// Why a server cannot be asked.
pub enum Failure {
    /// It refuses us: its own words.
    Refused(Bytes),
    Broken(String),
}

#[derive(Default)]
struct Queue {
    out: Requests,
    pending: VecDeque<Pending>,
}

pub struct Conn {
    pub w: W,
    pub key: Key,
    pub ident: Rc<Ident>,
    queue: RefCell<Queue>,
    waker: RefCell<Option<Waker>>,
    scheduled: Cell<bool>,
    pub dead: Cell<bool>,
    pub ready: Cell<bool>,
    killed: Cell<bool>,
    /// Since when a reply is owed without a sign of life.
    pub owed: Cell<u64>,
    pub used: Cell<u64>,
    waiters: RefCell<Vec<Rc<Client>>>,
}

impl Conn {
    /// The connection for this key; made if there is none.
    pub fn get(w: W, key: Key, lane: usize, ident: &Rc<Ident>) -> Rc<Conn> {
        if let Some(conn) = w.pools.borrow().get(&(key, lane)) {
            if !conn.dead.get() {
                return conn.clone();
            }
        }
        let conn = Rc::new(Conn {
            w,
            key,
            ident: ident.clone(),
            queue: RefCell::default(),
            waker: RefCell::default(),
            scheduled: Cell::new(false),
            dead: Cell::new(false),
            ready: Cell::new(false),
            killed: Cell::new(false),
            owed: Cell::new(w.now.get()),
            used: Cell::new(w.now.get()),
            waiters: RefCell::default(),
        });
        w.pools.borrow_mut().insert((key, lane), conn.clone());
        tokio::task::spawn_local(run(conn.clone()));
        conn
    }

    pub fn in_flight(&self) -> usize {
        self.queue.borrow().pending.len()
    }

    /// Whether clients should wait before they send more.
    #[inline]
    pub fn full(&self, limit: usize) -> bool {
        self.queue.borrow().out.held() > limit
    }

    pub fn wait_for_room(&self, client: &Rc<Client>) {
        self.waiters.borrow_mut().push(client.clone());
    }

    #[inline]
    pub fn send(&self, request: &[u8], pending: Pending) {
        let mut queue = self.queue.borrow_mut();
        queue.out.push(request);
        self.enqueue(&mut queue, request.len(), pending);
    }

    pub fn send_big(&self, request: Bytes, pending: Pending) {
        if request.len() < BIG {
            return self.send(&request, pending);
        }
        let mut queue = self.queue.borrow_mut();
        let len = request.len();
        queue.out.push_big(request);
        self.enqueue(&mut queue, len, pending);
    }

    #[inline]
    fn enqueue(&self, queue: &mut Queue, len: usize, mut pending: Pending) {
        pending.len = len as u32;
        if queue.pending.is_empty() {
            self.owed.set(self.w.now.get());
        }
        queue.pending.push_back(pending);
        self.wake();
    }

    #[inline]
    pub fn wake(&self) {
        if !self.scheduled.replace(true) {
            if let Some(waker) = &*self.waker.borrow() {
                waker.wake_by_ref();
            }
        }
    }

    /// The server has said something.
    #[inline]
    fn heard(&self, n: usize) {
        self.owed.set(self.w.now.get());
        self.w.hears();
        add(&self.w.count.server_in, n as u64);
    }

    pub fn kill(&self) {
        self.killed.set(true);
        self.scheduled.set(false);
        self.wake();
    }

    /// The next reply, whole.
    #[inline]
    fn reply(&self, frame: &[u8]) {
        if frame[0] == b'>' {
            return;
        }
        let (pending, redirected) = {
            let mut queue = self.queue.borrow_mut();
            let Some(pending) = queue.pending.pop_front() else { return };
            let len = pending.len as usize;
            let redirected = if frame[0] == b'-' && !pending.fixed {
                retry::redirection(self.w, frame).map(|to| (to, queue.out.first(len)))
            } else {
                None
            };
            if redirected.is_none() {
                self.done(&queue, &pending);
            }
            queue.out.answer(len);
            (pending, redirected)
        };
        match redirected {
            Some((to, request)) => retry::redirect(self, to, request, pending, frame),
            None => pending.sink.deliver(frame),
        }
    }

    fn reply_big(&self, frame: Bytes) {
        let mut queue = self.queue.borrow_mut();
        let Some(pending) = queue.pending.pop_front() else { return };
        self.done(&queue, &pending);
        queue.out.answer(pending.len as usize);
        drop(queue);
        pending.sink.deliver_big(frame);
    }

    /// Takes down how long a command took, before its request is let go.
    #[inline]
    fn done(&self, queue: &Queue, pending: &Pending) {
        if let (Some((cmd, since)), Sink::Client(client, _)) = (pending.timed, &pending.sink) {
            let us = self.w.heard.get().saturating_sub(since);
            slowlog::done(client, cmd, us, || queue.out.first(pending.len as usize));
        }
    }

    /// Nothing more comes from this server: everybody is told, or their requests go elsewhere.
    fn fail(&self, failure: &Failure) {
        self.dead.set(true);
        self.w.pools.borrow_mut().retain(|_, conn| !std::ptr::eq(&raw const **conn, self));
        if matches!(failure, Failure::Broken(_)) && !self.w.stopping.get() {
            self.w.refresh.notify_one();
        }
        loop {
            let (pending, request, sent) = {
                let mut queue = self.queue.borrow_mut();
                let Some(pending) = queue.pending.pop_front() else { break };
                let sent = queue.out.first_is_sent();
                let request = queue.out.first(pending.len as usize);
                queue.out.answer(pending.len as usize);
                (pending, request, sent)
            };
            match failure {
                Failure::Refused(words) => pending.sink.deliver(words),
                Failure::Broken(why) => retry::again(self, request, pending, sent, why),
            }
        }
        for client in self.waiters.take() {
            client.wake();
        }
    }
}

/// Sends a request and waits for its reply. `fixed`: to this node, whatever it says; else to where it leads.
pub async fn call(conn: &Conn, request: Bytes, repeatable: bool, fixed: bool) -> Bytes {
    let call = Rc::new(Call::default());
    conn.send_big(request, Pending::new(Sink::Call(call.clone()), repeatable, fixed));
    call.wait().await
}

/// Connects and becomes who the clients are. A server that is busy is waited for as if it had been asked before.
pub async fn open(w: W, key: Key, ident: &Ident) -> Result<TcpStream, Failure> {
    let times = w.config().times.clone();
    let addr = w.addr(key.node);
    let broken = |e: std::io::Error| Failure::Broken(format!("{addr}: {e}"));
    let late = |_| Failure::Broken(format!("{addr}: no answer"));
    let connecting = timeout(Duration::from_millis(times.connect_ms), TcpStream::connect(&addr));
    let mut stream = connecting.await.map_err(late)?.map_err(broken)?;
    let _ = stream.set_nodelay(true);
    let _ = socket2::SockRef::from(&stream)
        .set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(Duration::from_secs(60)));
    let introduced = unless(w.until_replaced(key.node), introduce(&mut stream, key, ident));
    match timeout(Duration::from_millis(times.reply_ms), introduced).await.map_err(late)?.map_err(broken)? {
        None => Ok(stream),
        Some(refusal) => Err(Failure::Refused(refusal)),
    }
}

/// Says who asks, for what; and what the server has against it.
async fn introduce(stream: &mut TcpStream, key: Key, ident: &Ident) -> std::io::Result<Option<Bytes>> {
    let mut steps: Vec<Vec<u8>> = Vec::new();
    match (&ident.user, &ident.password) {
        (Some(user), Some(password)) => steps.push(resp::request(&[b"AUTH", &user[..], &password[..]])),
        (None, Some(password)) => steps.push(resp::request(&[b"AUTH", &password[..]])),
        _ => {}
    }
    if key.proto == 3 {
        steps.push(resp::request(&["HELLO", "3"]));
    }
    if key.db != 0 {
        steps.push(resp::request(&["SELECT", &key.db.to_string()]));
    }
    // Nothing is asked before the server has said something: the kernel still takes connections for one that is
    // dying, and what was sent to it then would be in doubt.
    let stranger = steps.is_empty();
    if stranger {
        steps.push(resp::request(&["PING"]));
    }
    for step in steps {
        stream.write_all(&step).await?;
        let reply = read_reply(stream).await?;
        if reply.starts_with(b"-ERR max number of clients") {
            return Err(std::io::Error::other("no connection left"));
        }
        if reply.starts_with(b"-") && !stranger {
            return Ok(Some(reply));
        }
    }
    Ok(None)
}

/// One reply, when nothing else can follow it.
pub async fn read_reply(stream: &mut TcpStream) -> std::io::Result<Bytes> {
    let mut scan = Replies::default();
    let mut buf = BytesMut::new();
    loop {
        let from = buf.len();
        if stream.read_buf(&mut buf).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let (_, end) = scan.feed(&buf[from..]).map_err(|_| std::io::ErrorKind::InvalidData)?;
        if end {
            return Ok(buf.freeze());
        }
    }
}

async fn run(conn: Rc<Conn>) {
    let failure = match open(conn.w, conn.key, &conn.ident).await {
        Err(failure) => failure,
        Ok(mut stream) => {
            conn.ready.set(true);
            conn.owed.set(conn.w.now.get());
            let mut reader = Reader::default();
            let why = poll_fn(|cx| poll(&conn, &mut stream, &mut reader, cx)).await;
            if let Some((client, _)) = reader.to {
                // Half a reply is out: what follows would be taken for the rest of it.
                client.cut();
            }
            Failure::Broken(format!("{}: {why}", conn.w.addr(conn.key.node)))
        }
    };
    conn.fail(&failure);
}

#[derive(Default)]
struct Reader {
    scan: Replies,
    /// The beginning of a reply that is not all there.
    part: BytesMut,
    /// Who is being sent a large reply while it comes in.
    to: Option<(Rc<Client>, u64)>,
}

fn poll(conn: &Rc<Conn>, stream: &mut TcpStream, reader: &mut Reader, cx: &mut Context<'_>) -> Poll<String> {
    {
        let mut waker = conn.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }
    conn.scheduled.set(false);
    if conn.killed.get() {
        return Poll::Ready("no answer in time".into());
    }
    // What was asked first, so that the server works while its last replies are read.
    loop {
        let mut queue = conn.queue.borrow_mut();
        if queue.out.unsent() == 0 {
            break;
        }
        let mut slices = [IoSlice::new(&[]); 32];
        let n = queue.out.slices(&mut slices);
        match Pin::new(&mut *stream).poll_write_vectored(cx, &slices[..n]) {
            Poll::Ready(Ok(n)) => {
                queue.out.wrote(n);
                add(&conn.w.count.server_out, n as u64);
            }
            Poll::Ready(Err(e)) => return Poll::Ready(e.to_string()),
            Poll::Pending => break,
        }
    }
    let mut result = Poll::Pending;
    let config = conn.w.config();
    for turn in 0.. {
        if let Some((client, _)) = &reader.to {
            if client.backlog() > config.limits.output_pause && !client.closed.get() {
                client.wakes(conn);
                break;
            }
        }
        if turn == 8 {
            cx.waker().wake_by_ref();
            break;
        }
        match read(conn, stream, reader, cx) {
            Poll::Pending => break,
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(why)) => {
                result = Poll::Ready(why);
                break;
            }
        }
    }
    if !conn.waiters.borrow().is_empty() && !conn.full(config.limits.upstream_held / 2) {
        for client in conn.waiters.take() {
            client.wake();
        }
    }
    result
}

fn read(conn: &Conn, stream: &mut TcpStream, reader: &mut Reader, cx: &mut Context<'_>) -> Poll<Result<(), String>> {
    let ahead = reader.scan.ahead() as usize;
    if ahead > BIG {
        // Straight to where it stays. Not the line end: with that the reply might be whole, which is seen below only.
        let streaming = reader.to.is_some();
        let mut own = BytesMut::new();
        let buf = if streaming { &mut own } else { &mut reader.part };
        let room = (ahead - 2).min(64 * 1024);
        buf.reserve(if streaming { room } else { ahead.min(1 << 20) });
        let from = buf.len();
        buf.resize(from + room, 0);
        let mut into = ReadBuf::new(&mut buf[from..]);
        let polled = Pin::new(stream).poll_read(cx, &mut into);
        let n = into.filled().len();
        buf.truncate(from + n);
        return match polled {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(e)) => Poll::Ready(Err(e.to_string())),
            Poll::Ready(Ok(())) if n == 0 => Poll::Ready(Err("closed".into())),
            Poll::Ready(Ok(())) => {
                conn.heard(n);
                let _ = reader.scan.feed(&buf[from..]);
                if let Some((client, _)) = &reader.to {
                    client.stream(own.freeze());
                } else {
                    start_streaming(conn, reader);
                }
                Poll::Ready(Ok(()))
            }
        };
    }
    let mut scratch = conn.w.scratch.borrow_mut();
    let mut into = ReadBuf::new(&mut scratch);
    match Pin::new(stream).poll_read(cx, &mut into) {
        Poll::Pending => return Poll::Pending,
        Poll::Ready(Err(e)) => return Poll::Ready(Err(e.to_string())),
        Poll::Ready(Ok(())) => {}
    }
    let data = into.filled();
    if data.is_empty() {
        return Poll::Ready(Err("closed".into()));
    }
    conn.heard(data.len());
    let mut pos = 0;
    while pos < data.len() {
        let Ok((n, end)) = reader.scan.feed(&data[pos..]) else {
            return Poll::Ready(Err("not a server of this protocol".into()));
        };
        let piece = &data[pos..pos + n];
        pos += n;
        match (&reader.to, end) {
            (Some((client, _)), false) => client.stream(Bytes::copy_from_slice(piece)),
            (Some((client, seq)), true) => {
                client.stream(Bytes::copy_from_slice(piece));
                client.stream_end(*seq);
                reader.to = None;
            }
            (None, true) if reader.part.is_empty() => conn.reply(piece),
            (None, true) => {
                reader.part.extend_from_slice(piece);
                let frame = reader.part.split().freeze();
                if frame.len() < BIG {
                    conn.reply(&frame)
                } else {
                    conn.reply_big(frame)
                }
                reader.part = BytesMut::new();
            }
            (None, false) => {
                reader.part.extend_from_slice(piece);
                start_streaming(conn, reader);
            }
        }
    }
    Poll::Ready(Ok(()))
}

/// A large reply whose turn it is goes out as it comes in. One that nobody wants any more, nowhere.
fn start_streaming(conn: &Conn, reader: &mut Reader) {
    if reader.part.len() < BIG || matches!(reader.part[0], b'-' | b'>') {
        return;
    }
    let mut queue = conn.queue.borrow_mut();
    let Some(Pending { sink: Sink::Client(client, seq), len, .. }) = queue.pending.front() else { return };
    if reader.part.len() > conn.w.config.borrow().limits.output_limit + MAX_BULK as usize {
        client.cut();
    }
    if !client.is_next(*seq) && !client.closed.get() {
        return;
    }
    let len = *len as usize;
    let (client, seq) = (client.clone(), *seq);
    if let Some(pending) = queue.pending.pop_front() {
        conn.done(&queue, &pending);
    }
    queue.out.answer(len);
    drop(queue);
    client.stream_begin();
    client.stream(reader.part.split().freeze());
    reader.part = BytesMut::new();
    reader.to = Some((client, seq));
}
