//! However a stream of replies is cut, their ends are found where the slow reader finds them; what is made of them
//! breaks nothing, whatever they are.
#![no_main]

#[path = "../../tests/reference/mod.rs"]
mod reference;

use bytes::Bytes;
use cacheyard_proxy::merge;
use cacheyard_proxy::resp::{Replies, Value};
use libfuzzer_sys::fuzz_target;

/// Where replies end, and whether what follows is one.
fn ends(stream: &[u8], sizes: &[u8]) -> (Vec<usize>, bool) {
    let (mut out, mut scan, mut at, mut turn) = (Vec::new(), Replies::default(), 0, 0);
    while at < stream.len() {
        let size = sizes.get(turn % sizes.len().max(1)).map_or(stream.len(), |n| usize::from(*n) + 1);
        turn += 1;
        let until = stream.len().min(at + size);
        while at < until {
            let Ok((n, end)) = scan.feed(&stream[at..until]) else { return (out, false) };
            assert!(n > 0);
            at += n;
            if end {
                out.push(at);
            }
        }
    }
    (out, true)
}

fn nesting(stream: &[u8]) -> usize {
    stream.iter().filter(|b| b"*~>%|".contains(b)).count()
}

fuzz_target!(|data: (Vec<u8>, Vec<&[u8]>)| {
    let (sizes, parts) = data;
    let stream = parts.concat();
    // The slow reader calls itself for each level.
    if nesting(&stream) > 500 {
        return;
    }
    let (mut want, mut at) = (Vec::new(), 0);
    let fine = loop {
        match reference::reply(&stream, at) {
            Ok(Some(end)) => {
                want.push(end);
                at = end;
            }
            Ok(None) => break true,
            Err(()) => break false,
        }
    };
    let (got, whole) = ends(&stream, &[]);
    assert_eq!((&got, whole), (&want, fine));
    assert_eq!(ends(&stream, &sizes), (want, fine));
    let _ = Value::parse(&stream);
    let replies: Vec<Bytes> = parts.iter().map(|part| Bytes::copy_from_slice(part)).collect();
    if !replies.is_empty() {
        let _ = (merge::concat(&replies), merge::sum(&replies), merge::all_set(&replies), merge::unique(&replies, 2));
        let _ = (merge::sum_pairs(&replies), merge::slowlog(&replies, 9), merge::elements(&replies[0]));
        let _ = merge::info(&replies, 1, 3);
    }
});
