//! However a stream of requests is cut, the reader finds what the slow one finds in the whole of it.
#![no_main]

#[path = "../../tests/reference/mod.rs"]
mod reference;

use cacheyard_proxy::resp::{Parsed, Requests};
use libfuzzer_sys::fuzz_target;

fn read(stream: &[u8], sizes: &[u8]) -> (Vec<Vec<Vec<u8>>>, Result<usize, ()>) {
    let (mut commands, mut buf, mut reader) = (Vec::new(), Vec::new(), Requests::default());
    let (mut at, mut turn) = (0, 0);
    while at < stream.len() {
        let size = sizes.get(turn % sizes.len().max(1)).map_or(stream.len(), |n| usize::from(*n) + 1);
        turn += 1;
        let end = stream.len().min(at + size);
        buf.extend_from_slice(&stream[at..end]);
        at = end;
        while !buf.is_empty() {
            let took = match reader.next(&buf) {
                Err(_) => return (commands, Err(())),
                Ok(Parsed::More(need)) => {
                    assert!(need > buf.len(), "asks for what it has");
                    break;
                }
                Ok(Parsed::Nothing(n)) => n,
                Ok(Parsed::Inline(n, words)) => {
                    commands.push(words);
                    n
                }
                Ok(Parsed::Command(n)) => {
                    commands.push(reader.args().iter().map(|(from, to)| buf[*from as usize..*to as usize].to_vec()).collect());
                    n
                }
            };
            assert!(took > 0 && took <= buf.len());
            buf.drain(..took);
        }
    }
    (commands, Ok(buf.len()))
}

fuzz_target!(|data: (Vec<u8>, &[u8])| {
    let (sizes, stream) = data;
    let want = reference::requests(stream);
    assert_eq!(read(stream, &[]), want);
    assert_eq!(read(stream, &sizes), want);
});
