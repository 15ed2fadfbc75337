//! A limit on the bytes that go from and to clients, for the whole process. Who meets it waits: nothing more is read
//! from a client or written to it until there is something to spend. Clients take turns.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use crate::client::Client;
use crate::world::W;

/// Bytes in one write while there is a limit, so that nobody spends what others wait for.
pub const PIECE: usize = 16 * 1024;
const STEP: Duration = Duration::from_millis(5);
/// Clients that are let go on in one step.
const TURN: usize = 64;

#[derive(Default)]
pub struct Bandwidth {
    /// Bytes in a microsecond; 0: no limit.
    rate: Cell<f64>,
    /// What may be spent now; less than nothing after a piece that was larger than what was left.
    spare: Cell<f64>,
    /// Up to when that is counted.
    counted: Cell<u64>,
    waiting: RefCell<VecDeque<Rc<Client>>>,
    asked: Notify,
}

impl Bandwidth {
    pub fn limit(&self, mbit: u64) {
        self.rate.set(mbit as f64 / 8.0);
        self.spare.set(0.0);
        self.asked.notify_one();
    }

    #[inline]
    pub fn limited(&self) -> bool {
        self.rate.get() != 0.0
    }

    /// Whether anything may be read or written now.
    #[inline]
    pub fn open(&self, w: W) -> bool {
        !self.limited() || self.some_left(w)
    }

    fn some_left(&self, w: W) -> bool {
        let (rate, now) = (self.rate.get(), w.clock_us());
        let gained = (now - self.counted.replace(now)) as f64 * rate;
        // What nobody wanted is saved for a twentieth of a second.
        self.spare.set((self.spare.get() + gained).min(rate * 50_000.0));
        self.spare.get() > 0.0
    }

    #[inline]
    pub fn spend(&self, n: usize) {
        if self.limited() {
            self.spare.set(self.spare.get() - n as f64);
        }
    }

    /// The client goes on when there is something to spend.
    pub fn wait(&self, client: &Rc<Client>) {
        if !client.throttled.replace(true) {
            self.waiting.borrow_mut().push_back(client.clone());
            self.asked.notify_one();
        }
    }

    pub async fn serve(&self, w: W) {
        loop {
            self.asked.notified().await;
            while !self.waiting.borrow().is_empty() {
                for _ in 0..TURN {
                    if !self.open(w) {
                        break;
                    }
                    let Some(client) = self.waiting.borrow_mut().pop_front() else { break };
                    client.throttled.set(false);
                    client.flush();
                    client.wake();
                }
                sleep(STEP).await;
            }
        }
    }
}
