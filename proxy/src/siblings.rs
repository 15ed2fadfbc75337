//! The other processes that serve the same address. What a client asks of all clients is asked of each of them too,
//! over their control sockets; one that does not answer has no clients.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::fanout::together;
use crate::resp::{self, Value};
use crate::world::W;

const PATIENCE: Duration = Duration::from_secs(1);

/// A connection to each of them.
pub async fn connect(w: W, request: &[u8]) -> Vec<UnixStream> {
    let config = w.config();
    // Its own may be among them, in other words.
    let own = config.control.as_ref().and_then(|path| path.canonicalize().ok());
    let others = config.siblings.iter().filter(|path| own.is_none() || path.canonicalize().ok() != own);
    let asked = others.map(|path| async move { timeout(PATIENCE, begin(path, request)).await.ok()?.ok() });
    together(asked.collect()).await.into_iter().flatten().collect()
}

async fn begin(path: &Path, request: &[u8]) -> std::io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(request).await?;
    Ok(stream)
}

/// What each of them says to a command.
pub async fn ask<T: AsRef<[u8]>>(w: W, words: &[T]) -> Vec<Bytes> {
    if w.config().siblings.is_empty() {
        return Vec::new();
    }
    let streams = connect(w, &resp::request(words)).await;
    let answers = streams.into_iter().map(|mut stream| async move {
        let mut reply = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut reply)).await.ok()?.ok()?;
        (!reply.is_empty() && reply[0] != b'-').then(|| Bytes::from(reply))
    });
    together(answers.collect()).await.into_iter().flatten().collect()
}

/// Numbers that they answer, added up.
pub async fn sum<T: AsRef<[u8]>>(w: W, words: &[T]) -> i64 {
    ask(w, words).await.iter().filter_map(|reply| Value::parse(reply)?.int()).sum()
}
