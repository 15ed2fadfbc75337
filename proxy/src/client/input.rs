//! The task of one client: reads what comes in, cuts it into requests and has them dispatched while there is room.

use std::future::poll_fn;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::ReadBuf;

use super::Client;
use super::dispatch::{Next, Raw, Slow};
use crate::buf::BIG;
use crate::resp::{self, Parsed, Requests};

/// So long the rest of what cannot be read is taken before the connection is closed.
const LINGER: Duration = Duration::from_secs(2);

/// What only the client's own task has.
struct Input {
    buf: BytesMut,
    parser: Requests,
    slow: Option<Slow>,
    ended: bool,
    /// What came is no request, and the client was told so.
    refused: bool,
    /// A large command that has to wait.
    held: Option<Bytes>,
}

/// Serves a client to its end.
pub async fn serve(client: Rc<Client>) {
    let (buf, parser) = (BytesMut::new(), Requests::default());
    let mut input = Input { buf, parser, slow: None, ended: false, refused: false, held: None };
    poll_fn(|cx| {
        let polled = poll(&client, &mut input, cx);
        if client.closed.get() { Poll::Ready(()) } else { polled.map(|_| ()) }
    })
    .await;
    client.io.borrow_mut().close();
    if input.refused && !client.closed.get() {
        linger(&client).await;
    }
    client.closed.set(true);
    client.subscriptions.close();
    client.transaction.borrow_mut().take();
    let source = client.replies.borrow_mut().source.take();
    if let Some(conn) = source {
        conn.wake();
    }
}

/// Throws away what still comes. Closed at once, the connection would be reset while the client sends, and it might
/// never read why.
async fn linger(client: &Client) {
    let _ = socket2::SockRef::from(client.io.borrow().tcp()).shutdown(Shutdown::Write);
    let mut scratch = vec![0; 64 * 1024];
    let over = poll_fn(|cx| {
        loop {
            let io = client.io.borrow();
            let open = !client.closed.get() && ready!(io.tcp().poll_read_ready(cx)).is_ok();
            match io.tcp().try_read(&mut scratch) {
                Ok(n) if n > 0 && open => client.heard(n),
                Err(e) if e.kind() == ErrorKind::WouldBlock && open => {}
                _ => return Poll::Ready(()),
            }
        }
    });
    let _ = tokio::time::timeout(LINGER, over).await;
}

fn poll(client: &Rc<Client>, input: &mut Input, cx: &mut Context<'_>) -> Poll<Result<(), ()>> {
    {
        let mut waker = client.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }
    input.parser.max_bulk = client.w.max_bulk.get();
    for turn in 0.. {
        if client.closed.get() {
            return Poll::Ready(Ok(()));
        }
        let blocked = client.replies.borrow().blocked;
        if blocked {
            let polled = client.io.borrow().poll_write_ready(cx);
            match polled {
                Poll::Ready(Ok(())) => {
                    client.replies.borrow_mut().blocked = false;
                    client.flush();
                    continue;
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Ok(())),
                Poll::Pending => {}
            }
        }
        if let Some((slow, waits)) = &mut input.slow {
            let waits = *waits;
            if slow.as_mut().poll(cx).is_pending() {
                // To see that the client has gone, while a server makes it wait.
                while input.buf.len() < 64 * 1024 && !input.ended {
                    if fill(client, input, cx)?.is_pending() {
                        return Poll::Pending;
                    }
                }
                // One who says no more may still want to hear what he has asked for, if that ends at all.
                return if input.ended && waits { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
            input.slow = None;
            client.flush();
        }
        if client.leaving.get() {
            client.flush();
            let done = client.backlog() == 0 && client.in_flight() == 0 && !client.io.borrow().unsent();
            return if done { Poll::Ready(Ok(())) } else { Poll::Pending };
        }
        client.paused.set(false);
        if turn == 16 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if !input.buf.is_empty() || input.held.is_some() {
            let mut buf = std::mem::take(&mut input.buf);
            let more = consume(client, input, &mut buf);
            input.buf = buf;
            if input.slow.is_some() || client.leaving.get() {
                continue;
            }
            if client.paused.get() {
                return Poll::Pending;
            }
            if !more {
                continue;
            }
        }
        if input.ended {
            // Half a command may be left, and no more comes.
            client.leaving.set(true);
            continue;
        }
        if fill(client, input, cx)?.is_pending() {
            return Poll::Pending;
        }
    }
    Poll::Pending
}

/// Reads once. What is whole is dispatched straight from the common buffer; the rest is kept.
fn fill(client: &Rc<Client>, input: &mut Input, cx: &mut Context<'_>) -> Poll<Result<(), ()>> {
    let w = client.w;
    if !w.bandwidth.open(w) {
        w.bandwidth.wait(client);
        return Poll::Pending;
    }
    if input.buf.is_empty() && input.slow.is_none() {
        let mut scratch = w.scratch.take();
        let mut into = ReadBuf::new(&mut scratch);
        let polled = client.io.borrow_mut().poll_read(cx, &mut into);
        let n = into.filled().len();
        match polled {
            Poll::Ready(Ok(())) if n > 0 => {
                client.heard(n);
                consume_slice(client, input, &scratch[..n]);
            }
            Poll::Ready(Ok(())) => input.ended = true,
            Poll::Ready(Err(_)) | Poll::Pending => {}
        }
        *w.scratch.borrow_mut() = scratch;
        return polled.map_err(|_| ());
    }
    // A large argument is read to its end and no further: then the whole buffer becomes the request.
    let need = match input.parser.next(&input.buf) {
        Ok(Parsed::More(total)) if input.slow.is_none() => total.saturating_sub(input.buf.len()),
        _ => 0,
    };
    let room = if need > BIG { need } else { 16 * 1024 };
    let from = input.buf.len();
    // No more memory than has come: what is announced may never arrive.
    let room = room.min(from.max(64 * 1024));
    input.buf.reserve(if need > from { room } else { need.max(room) });
    input.buf.resize(from + room, 0);
    let mut into = ReadBuf::new(&mut input.buf[from..]);
    let polled = client.io.borrow_mut().poll_read(cx, &mut into);
    let n = into.filled().len();
    input.buf.truncate(from + n);
    match polled {
        Poll::Ready(Ok(())) if n == 0 => input.ended = true,
        _ => client.heard(n),
    }
    polled.map_err(|_| ())
}

fn room(client: &Client) -> bool {
    let limits = &client.w.config.borrow().limits;
    let replies = client.replies.borrow();
    replies.queue.len() < limits.in_flight && replies.out.len() + replies.held < limits.output_pause
}

fn consume_slice(client: &Rc<Client>, input: &mut Input, data: &[u8]) {
    let mut pos = 0;
    while pos < data.len() {
        if client.leaving.get() || client.closed.get() {
            return;
        }
        if input.slow.is_some() || client.paused.get() || !room(client) {
            client.paused.set(true);
            break;
        }
        match step(client, input, &data[pos..]) {
            Step::Took(n) => pos += n,
            Step::More | Step::Stop => break,
        }
    }
    input.buf.extend_from_slice(&data[pos..]);
    input.slow = input.slow.take().or_else(|| client.batch());
}

/// Dispatches what is whole in `buf`. True: what is left is the beginning of a command.
fn consume(client: &Rc<Client>, input: &mut Input, buf: &mut BytesMut) -> bool {
    use bytes::Buf;
    if let Some(held) = input.held.take() {
        let Ok(Parsed::Command(n)) = input.parser.next(&held) else { return false };
        let next = client.dispatch(Raw::Own(held.clone()), input.parser.args());
        if matches!(take(client, input, next, n), Step::Stop) {
            input.held = Some(held);
            input.slow = client.batch();
            return false;
        }
    }
    let mut pos = 0;
    let mut more = buf.is_empty();
    while pos < buf.len() {
        if client.leaving.get() || client.closed.get() || input.slow.is_some() {
            break;
        }
        if client.paused.get() || !room(client) {
            client.paused.set(true);
            break;
        }
        if buf.len() - pos > BIG {
            // A large command is handed over as it is.
            if let Ok(Parsed::Command(n)) = input.parser.next(&buf[pos..]) {
                if n > BIG {
                    buf.advance(pos);
                    pos = 0;
                    let own = buf.split_to(n).freeze();
                    let next = client.dispatch(Raw::Own(own.clone()), input.parser.args());
                    input.parser.relax();
                    if matches!(take(client, input, next, n), Step::Stop) {
                        input.held = Some(own);
                        break;
                    }
                    more = buf.is_empty();
                    continue;
                }
            }
        }
        match step(client, input, &buf[pos..]) {
            Step::Took(n) => {
                pos += n;
                more = pos == buf.len();
            }
            Step::More => {
                more = true;
                break;
            }
            Step::Stop => break,
        }
    }
    buf.advance(pos);
    if buf.is_empty() && buf.capacity() > 0 {
        *buf = BytesMut::new();
    }
    input.slow = input.slow.take().or_else(|| client.batch());
    more
}

enum Step {
    Took(usize),
    More,
    Stop,
}

/// One command from the beginning of `data`.
fn step(client: &Rc<Client>, input: &mut Input, data: &[u8]) -> Step {
    let parsed = match input.parser.next(data) {
        Ok(parsed) => parsed,
        Err(text) => {
            return refuse(client, input, &resp::error(format!("ERR {text}")));
        }
    };
    let anonymous = client.ident.borrow().anonymous();
    match parsed {
        Parsed::More(need) if anonymous && need > 64 * 1024 && client.w.locked.get() => {
            refuse(client, input, b"-ERR Protocol error: unauthenticated bulk length\r\n")
        }
        Parsed::More(_) => Step::More,
        Parsed::Nothing(n) => Step::Took(n),
        Parsed::Inline(n, words) => {
            let request = resp::request(&words);
            let mut parser = Requests::default();
            if !matches!(parser.next(&request), Ok(Parsed::Command(_))) {
                return Step::Took(n);
            }
            take(client, input, client.dispatch(Raw::Slice(&request), parser.args()), n)
        }
        Parsed::Command(n) => {
            let next = client.dispatch(Raw::Slice(&data[..n]), input.parser.args());
            input.parser.relax();
            take(client, input, next, n)
        }
    }
}

fn refuse(client: &Rc<Client>, input: &mut Input, reply: &[u8]) -> Step {
    client.answer(reply, false);
    client.leaving.set(true);
    input.refused = true;
    Step::Stop
}

fn take(client: &Client, input: &mut Input, next: Next, n: usize) -> Step {
    match next {
        Next::Go => Step::Took(n),
        Next::Pause => {
            client.paused.set(true);
            Step::Stop
        }
        Next::Slow(slow) => {
            input.slow = Some(slow);
            Step::Took(n)
        }
    }
}
