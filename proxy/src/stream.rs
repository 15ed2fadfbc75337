//! A client's connection, with TLS or without. Nothing is put between a plain socket and its reader.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

use crate::config::Tls;

/// Bytes that wait in a session to be encrypted or sent.
const HELD: usize = 64 * 1024;

pub enum Stream {
    Plain(TcpStream),
    Tls(Box<Session>),
}

pub struct Session {
    tcp: TcpStream,
    state: ServerConnection,
}

/// What the files of `[tls]` say.
pub fn acceptor(tls: &Tls) -> Result<Arc<ServerConfig>, String> {
    let told = |path: &std::path::Path, e: &dyn std::fmt::Display| format!("tls: {}: {e}", path.display());
    let chain: Vec<CertificateDer> =
        CertificateDer::pem_file_iter(&tls.cert).and_then(Iterator::collect).map_err(|e| told(&tls.cert, &e))?;
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|e| told(&tls.key, &e))?;
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|e| told(&tls.cert, &e))?;
    Ok(Arc::new(config))
}

impl Stream {
    pub fn new(tcp: TcpStream, tls: Option<&Arc<ServerConfig>>) -> io::Result<Stream> {
        let Some(config) = tls else { return Ok(Stream::Plain(tcp)) };
        let mut state = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
        state.set_buffer_limit(Some(HELD));
        Ok(Stream::Tls(Box::new(Session { tcp, state })))
    }

    pub fn tcp(&self) -> &TcpStream {
        match self {
            Stream::Plain(tcp) => tcp,
            Stream::Tls(session) => &session.tcp,
        }
    }

    pub fn encrypted(&self) -> bool {
        matches!(self, Stream::Tls(_))
    }

    pub fn handshaking(&self) -> bool {
        matches!(self, Stream::Tls(session) if session.state.is_handshaking())
    }

    #[inline]
    pub fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Plain(tcp) => Pin::new(tcp).poll_read(cx, into),
            Stream::Tls(session) => session.poll_read(cx, into),
        }
    }

    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp().poll_write_ready(cx)
    }

    #[inline]
    pub fn try_write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Stream::Plain(tcp) if slices.len() == 1 => tcp.try_write(&slices[0]),
            Stream::Plain(tcp) => tcp.try_write_vectored(slices),
            Stream::Tls(session) => session.try_write(slices),
        }
    }

    /// Whether something that was taken has still to be sent.
    #[inline]
    pub fn unsent(&self) -> bool {
        matches!(self, Stream::Tls(session) if session.state.wants_write())
    }

    /// Sends it.
    pub fn push(&mut self) -> io::Result<()> {
        match self {
            Stream::Plain(_) => Ok(()),
            Stream::Tls(session) => session.push(),
        }
    }

    /// Takes leave, as far as that goes without waiting.
    pub fn close(&mut self) {
        if let Stream::Tls(session) = self {
            session.state.send_close_notify();
            let _ = session.push();
        }
    }
}

/// The socket as rustls wants to see it.
struct Socket<'a>(&'a TcpStream);

impl Read for Socket<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buf)
    }
}

impl Write for Socket<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.try_write(buf)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(bufs)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Session {
    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.state.reader().read(into.initialize_unfilled()) {
                Ok(n) => {
                    into.advance(n);
                    return Poll::Ready(Ok(()));
                }
                // Without a farewell, as many clients leave.
                Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Poll::Ready(Ok(())),
                Err(e) if e.kind() != ErrorKind::WouldBlock => return Poll::Ready(Err(e)),
                Err(_) => {}
            }
            // What the handshake has to say; nobody else would send it.
            if let Err(e) = self.push() {
                if e.kind() != ErrorKind::WouldBlock {
                    return Poll::Ready(Err(e));
                }
                if self.tcp.poll_write_ready(cx).is_ready() {
                    continue;
                }
            }
            match self.tcp.poll_read_ready(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Ready(Ok(())) => {}
            }
            match self.state.read_tls(&mut Socket(&self.tcp)) {
                Ok(_) => {
                    if let Err(e) = self.state.process_new_packets() {
                        let _ = self.push();
                        return Poll::Ready(Err(io::Error::other(e)));
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    fn try_write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.push()?;
        let n = self.state.writer().write_vectored(slices)?;
        match self.push() {
            Err(e) if e.kind() != ErrorKind::WouldBlock => Err(e),
            _ if n == 0 => Err(ErrorKind::WouldBlock.into()),
            _ => Ok(n),
        }
    }

    fn push(&mut self) -> io::Result<()> {
        while self.state.wants_write() {
            self.state.write_tls(&mut Socket(&self.tcp))?;
        }
        Ok(())
    }
}
