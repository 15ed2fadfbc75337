//! Bytes on their way out. Small pieces are gathered into one buffer, large ones are kept as they are, and one
//! `writev` sends both.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::Bytes;

/// From this size on a piece is passed on instead of being copied.
pub const BIG: usize = 16 * 1024;
const CHUNK: usize = 64 * 1024;
const SLICES: usize = 32;

/// Replies to a client.
#[derive(Default)]
pub struct Outgoing {
    done: VecDeque<Bytes>,
    tail: Vec<u8>,
    /// Bytes of the first piece that are sent.
    sent: usize,
    len: usize,
}

impl Outgoing {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn longest(&self) -> usize {
        self.done.iter().map(Bytes::len).max().unwrap_or(0)
    }

    #[inline]
    pub fn push(&mut self, data: &[u8]) {
        self.len += data.len();
        if self.tail.len() + data.len() > CHUNK && !self.tail.is_empty() {
            self.seal();
        }
        self.tail.extend_from_slice(data);
    }

    pub fn push_big(&mut self, data: Bytes) {
        if data.len() < BIG {
            return self.push(&data);
        }
        self.len += data.len();
        self.seal();
        self.done.push_back(data);
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.done.push_back(Bytes::from(std::mem::take(&mut self.tail)));
        }
    }

    /// What is to be written next.
    #[inline]
    pub fn slices<'a>(&'a self, out: &mut [IoSlice<'a>; SLICES]) -> usize {
        let pieces = self.done.iter().map(|b| &b[..]).chain((!self.tail.is_empty()).then_some(&self.tail[..]));
        let mut n = 0;
        for (place, piece) in out.iter_mut().zip(pieces) {
            *place = IoSlice::new(if n == 0 { &piece[self.sent..] } else { piece });
            n += 1;
        }
        n
    }

    /// The beginning of it, no longer than that.
    pub fn piece(&self, most: usize) -> &[u8] {
        let first = self.done.front().map_or(&self.tail[..], |b| &b[..]);
        let rest = &first[self.sent..];
        &rest[..rest.len().min(most)]
    }

    pub fn wrote(&mut self, mut n: usize) {
        self.len -= n;
        while let Some(first) = self.done.front() {
            let left = first.len() - self.sent;
            if n < left {
                self.sent += n;
                return;
            }
            n -= left;
            self.sent = 0;
            self.done.pop_front();
        }
        self.sent += n;
        if self.sent == self.tail.len() {
            self.sent = 0;
            self.tail.clear();
            // What is idle owns nothing.
            if self.tail.capacity() > 1024 {
                self.tail = Vec::new();
            }
        }
    }
}

enum Chunk {
    Small(Vec<u8>),
    Big(Bytes),
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        match self {
            Chunk::Small(data) => data,
            Chunk::Big(data) => data,
        }
    }
}

/// Requests to a server: kept until they are answered, because a server may send us to another one instead.
/// No request lies in two chunks.
#[derive(Default)]
pub struct Requests {
    chunks: VecDeque<Chunk>,
    spare: Option<Vec<u8>>,
    /// Bytes of the first chunk that are answered.
    answered: usize,
    /// The chunk that is being written, and how far.
    writing: usize,
    wrote: usize,
    unsent: usize,
    held: usize,
}

impl Requests {
    pub fn unsent(&self) -> usize {
        self.unsent
    }

    /// Bytes kept, sent or not.
    pub fn held(&self) -> usize {
        self.held
    }

    #[inline]
    pub fn push(&mut self, data: &[u8]) {
        self.unsent += data.len();
        self.held += data.len();
        if let Some(Chunk::Small(tail)) = self.chunks.back_mut() {
            if tail.len() + data.len() <= CHUNK {
                tail.extend_from_slice(data);
                return;
            }
        }
        let mut chunk = self.spare.take().unwrap_or_default();
        chunk.extend_from_slice(data);
        self.chunks.push_back(Chunk::Small(chunk));
    }

    pub fn push_big(&mut self, data: Bytes) {
        self.unsent += data.len();
        self.held += data.len();
        self.chunks.push_back(Chunk::Big(data));
    }

    /// The oldest request that has no answer.
    pub fn first(&self, len: usize) -> Bytes {
        match self.chunks.front() {
            Some(Chunk::Small(data)) => Bytes::copy_from_slice(&data[self.answered..self.answered + len]),
            Some(Chunk::Big(data)) => data.slice(self.answered..self.answered + len),
            None => Bytes::new(),
        }
    }

    /// The oldest request has its answer.
    #[inline]
    pub fn answer(&mut self, len: usize) {
        self.held -= len;
        self.answered += len;
        let Some(first) = self.chunks.front() else { return };
        if self.answered < first.bytes().len() {
            return;
        }
        // A server may answer (with an error, and then hang up) what it has not been sent in full.
        if self.writing == 0 {
            self.unsent -= first.bytes().len() - self.wrote;
            self.wrote = 0;
        } else {
            self.writing -= 1;
        }
        self.answered = 0;
        if let Some(Chunk::Small(mut chunk)) = self.chunks.pop_front() {
            if self.spare.is_none() && chunk.capacity() <= 2 * CHUNK {
                chunk.clear();
                self.spare = Some(chunk);
            }
        }
    }

    /// Whether any byte of the oldest request may have reached the server.
    pub fn first_is_sent(&self) -> bool {
        self.writing > 0 || self.wrote > self.answered
    }

    #[inline]
    pub fn slices<'a>(&'a self, out: &mut [IoSlice<'a>; SLICES]) -> usize {
        let mut n = 0;
        for (place, chunk) in out.iter_mut().zip(self.chunks.iter().skip(self.writing)) {
            *place = IoSlice::new(if n == 0 { &chunk.bytes()[self.wrote..] } else { chunk.bytes() });
            n += 1;
        }
        n
    }

    pub fn wrote(&mut self, mut n: usize) {
        self.unsent -= n;
        while n > 0 {
            let left = self.chunks[self.writing].bytes().len() - self.wrote;
            // The last chunk stays open: more may be put behind what is written.
            if n < left || (n == left && self.writing + 1 == self.chunks.len()) {
                self.wrote += n;
                return;
            }
            n -= left;
            self.writing += 1;
            self.wrote = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(out: &mut Requests, n: usize) -> Vec<u8> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let count = out.slices(&mut slices);
        let data: Vec<u8> = slices[..count].iter().flat_map(|s| s.to_vec()).take(n).collect();
        out.wrote(data.len());
        data
    }

    #[test]
    fn requests_are_kept_until_they_are_answered() {
        let mut out = Requests::default();
        let (mut written, mut want) = (Vec::new(), Vec::new());
        let mut open = VecDeque::new();
        let mut seed = 7u64;
        for i in 0..20_000u64 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let len = 1 + (seed >> 33) as usize % if i % 50 == 0 { 90_000 } else { 60 };
            let data = vec![i as u8; len];
            if len > BIG {
                out.push_big(Bytes::from(data.clone()));
            } else {
                out.push(&data);
            }
            want.extend_from_slice(&data);
            open.push_back((data, want.len()));
            if seed >> 60 < 9 {
                written.extend(take(&mut out, (seed >> 20) as usize % 100_000));
            }
            while open.front().is_some_and(|(_, end)| *end <= written.len() && (seed >> 50) % 3 > 0) {
                let (data, _) = open.pop_front().unwrap();
                assert!(out.first_is_sent());
                assert_eq!(out.first(data.len()), data);
                out.answer(data.len());
            }
        }
        while out.unsent() > 0 {
            written.extend(take(&mut out, 50_000));
        }
        assert!(written == want);
        assert_eq!(out.held(), open.iter().map(|(data, _)| data.len()).sum::<usize>());
    }

    #[test]
    fn replies_leave_in_the_order_they_came() {
        let mut out = Outgoing::default();
        out.push(b"a");
        out.push_big(Bytes::from(vec![b'b'; BIG]));
        out.push(b"c");
        let mut got = Vec::new();
        while !out.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let n = out.slices(&mut slices);
            let some: Vec<u8> = slices[..n].iter().flat_map(|s| s.to_vec()).take(7000).collect();
            out.wrote(some.len());
            got.extend(some);
        }
        assert_eq!((got[0], got[got.len() - 1], got.len()), (b'a', b'c', BIG + 2));
    }
}
