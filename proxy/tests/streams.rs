//! However a stream is cut, the same frames come out of it; whatever comes in, nothing breaks.

mod reference;

use cacheyard_proxy::resp::{Parsed, Replies, Requests, Value, request};
use proptest::prelude::*;

fn frame() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..300).prop_map(|data| {
            let mut out = format!("${}\r\n", data.len()).into_bytes();
            out.extend(data);
            out.extend(b"\r\n");
            out
        }),
        "[a-zA-Z ]{0,40}".prop_map(|t| format!("+{t}\r\n").into_bytes()),
        "[A-Z]{1,9} [a-z ]{0,40}".prop_map(|t| format!("-{t}\r\n").into_bytes()),
        any::<i64>().prop_map(|n| format!(":{n}\r\n").into_bytes()),
        any::<f64>().prop_map(|n| format!(",{n}\r\n").into_bytes()),
        Just(b"$-1\r\n".to_vec()),
        Just(b"*-1\r\n".to_vec()),
        Just(b"_\r\n".to_vec()),
        Just(b"#t\r\n".to_vec()),
        Just(b"=7\r\ntxt:abc\r\n".to_vec()),
        Just(b"(123456789012345678901234567890\r\n".to_vec()),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        (prop::sample::select(vec![b'*', b'~', b'%', b'>', b'|']), prop::collection::vec(inner, 0..6)).prop_map(
            |(kind, mut items)| {
                let pairs = matches!(kind, b'%' | b'|');
                if pairs && items.len() % 2 == 1 {
                    items.push(b"_\r\n".to_vec());
                }
                let n = if pairs { items.len() / 2 } else { items.len() };
                let mut out = format!("{}{n}\r\n", kind as char).into_bytes();
                out.extend(items.concat());
                if kind == b'|' {
                    out.extend(b":1\r\n");
                }
                out
            },
        )
    })
}

/// The frames that a reader finds when the stream comes in pieces of these sizes.
fn cut(stream: &[u8], sizes: &[usize]) -> Vec<Vec<u8>> {
    let (mut out, mut now, mut scan) = (Vec::new(), Vec::new(), Replies::default());
    let (mut at, mut turn) = (0, 0);
    while at < stream.len() {
        let end = stream.len().min(at + sizes[turn % sizes.len()].max(1));
        turn += 1;
        while at < end {
            let (n, whole) = scan.feed(&stream[at..end]).unwrap();
            now.extend_from_slice(&stream[at..at + n]);
            at += n;
            if whole {
                out.push(std::mem::take(&mut now));
            }
        }
    }
    assert!(now.is_empty());
    out
}

/// The same for requests: what is left is shown again with more behind it.
fn requests(stream: &[u8], sizes: &[usize]) -> Result<Vec<Vec<Vec<u8>>>, String> {
    let (mut out, mut buf, mut reader) = (Vec::new(), Vec::new(), Requests::default());
    let (mut at, mut turn) = (0, 0);
    while at < stream.len() {
        let end = stream.len().min(at + sizes[turn % sizes.len()].max(1));
        turn += 1;
        buf.extend_from_slice(&stream[at..end]);
        at = end;
        loop {
            let took = match reader.next(&buf)? {
                Parsed::More(need) => {
                    assert!(need > buf.len());
                    break;
                }
                Parsed::Nothing(n) => n,
                Parsed::Inline(n, words) => {
                    out.push(words);
                    n
                }
                Parsed::Command(n) => {
                    let args = reader.args().iter();
                    out.push(args.map(|(from, to)| buf[*from as usize..*to as usize].to_vec()).collect());
                    n
                }
            };
            buf.drain(..took);
            if buf.is_empty() {
                break;
            }
        }
    }
    Ok(out)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn replies_are_the_same_however_they_are_cut(
        frames in prop::collection::vec(frame(), 1..12),
        sizes in prop::collection::vec(1usize..200, 1..20),
    ) {
        let stream = frames.concat();
        prop_assert_eq!(&cut(&stream, &sizes), &frames);
        prop_assert_eq!(&cut(&stream, &[1]), &frames);
        for frame in &frames {
            prop_assert!(Value::parse(frame).is_some());
        }
    }

    #[test]
    fn requests_are_the_same_however_they_are_cut(
        lines in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..8), 1..20),
        sizes in prop::collection::vec(1usize..150, 1..20),
    ) {
        let stream: Vec<u8> = lines.iter().flat_map(|words| request(words)).collect();
        prop_assert_eq!(&requests(&stream, &sizes).unwrap(), &lines);
        prop_assert_eq!(&requests(&stream, &[1]).unwrap(), &lines);
    }

    #[test]
    fn nothing_that_comes_in_breaks_a_reader(
        noise in prop::collection::vec(prop_oneof![
            prop::collection::vec(any::<u8>(), 0..40),
            Just(b"*".to_vec()), Just(b"$".to_vec()), Just(b"\r\n".to_vec()), Just(b"*3\r\n".to_vec()),
            Just(b"$-5\r\n".to_vec()), Just(b"$99999999999999999999\r\n".to_vec()), Just(b"*1048577\r\n".to_vec()),
            Just(b"\"a\\x4".to_vec()), Just(b"%-1\r\n".to_vec()),
        ], 0..20),
        sizes in prop::collection::vec(1usize..50, 1..5),
    ) {
        let stream = noise.concat();
        let found = requests(&stream, &sizes);
        let (want, end) = reference::requests(&stream);
        prop_assert_eq!(found.clone().map_err(|_| ()), end.map(|_| want));
        let mut scan = Replies::default();
        for piece in stream.chunks(sizes[0]) {
            let mut at = 0;
            while at < piece.len() {
                let Ok((n, _)) = scan.feed(&piece[at..]) else { return Ok(()) };
                prop_assert!(n > 0);
                at += n;
            }
        }
        let _ = Value::parse(&stream);
    }
}

#[test]
fn lines_are_split_as_a_shell_would() {
    let words = |line: &[u8]| requests(line, &[7]).unwrap();
    assert_eq!(words(b"set a \"x\\x41\\n\" 'it\\'s'\r\n"), [[&b"set"[..], b"a", b"xA\n", b"it's"]]);
    assert!(requests(b"set \"a\r\n", &[100]).is_err());
}
