//! A connection to a server that one client has to itself for a while: transactions, commands that block,
//! subscriptions, MONITOR.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::resp::Replies;
use crate::upstream::{Failure, open};
use crate::world::{Ident, Key, W};

pub struct Dedicated {
    pub w: W,
    pub key: Key,
    pub stream: TcpStream,
    part: BytesMut,
    scan: Replies,
    /// Bytes of `part` that were looked at.
    seen: usize,
}

const KEPT: usize = 32;

/// What is read, unless the server has been replaced and says nothing.
pub async fn unless<T>(
    replaced: impl Future<Output = ()>,
    read: impl Future<Output = std::io::Result<T>>,
) -> std::io::Result<T> {
    let (mut replaced, mut read) = (pin!(replaced), pin!(read));
    poll_fn(|cx| match read.as_mut().poll(cx) {
        Poll::Ready(result) => Poll::Ready(result),
        Poll::Pending => replaced.as_mut().poll(cx).map(|()| Err(std::io::ErrorKind::TimedOut.into())),
    })
    .await
}

impl Dedicated {
    /// One that somebody left, or a new one.
    pub async fn get(w: W, key: Key, ident: &Rc<Ident>) -> Result<Dedicated, Failure> {
        loop {
            let Some(kept) = w.idle.borrow_mut().get_mut(&key).and_then(Vec::pop) else { break };
            if !kept.closed() {
                return Ok(kept);
            }
        }
        Dedicated::new(w, key, ident).await
    }

    pub async fn new(w: W, key: Key, ident: &Rc<Ident>) -> Result<Dedicated, Failure> {
        let stream = open(w, key, ident).await?;
        Ok(Dedicated { w, key, stream, part: BytesMut::new(), scan: Replies::default(), seen: 0 })
    }

    /// Leaves it to others. Only when nothing of this client is left in it.
    pub fn leave(self) {
        let mut idle = self.w.idle.borrow_mut();
        let kept = idle.entry(self.key).or_default();
        if kept.len() < KEPT && self.part.is_empty() {
            kept.push(self);
        }
    }

    pub async fn send(&mut self, request: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(request).await
    }

    /// The next reply or push.
    pub async fn receive(&mut self) -> std::io::Result<Bytes> {
        loop {
            if self.seen < self.part.len() {
                let fed = self.scan.feed(&self.part[self.seen..]);
                let (n, end) = fed.map_err(|_| std::io::ErrorKind::InvalidData)?;
                self.seen += n;
                if end {
                    let len = std::mem::take(&mut self.seen);
                    return Ok(self.part.split_to(len).freeze());
                }
            }
            self.part.reserve((self.scan.ahead() as usize).clamp(4096, 1 << 20));
            let replaced = self.w.until_replaced(self.key.node);
            if unless(replaced, self.stream.read_buf(&mut self.part)).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// A reply that a server gives at once, or it is taken for dead.
    pub async fn answer(&mut self) -> std::io::Result<Bytes> {
        let limit = Duration::from_millis(self.w.config().times.reply_ms);
        tokio::time::timeout(limit, self.receive()).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
    }

    pub async fn ask(&mut self, request: &[u8]) -> std::io::Result<Bytes> {
        self.send(request).await?;
        self.answer().await
    }

    /// A connection that the server has closed reads as ended; one that is open has nothing to read.
    pub fn closed(&self) -> bool {
        !matches!(self.stream.try_read(&mut [0]), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
    }
}
