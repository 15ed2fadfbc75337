//! What commands took, each since the start and all of them over the last seconds, and how much is going on now.

use std::cell::Cell;

use crate::command::Cmd;
use crate::table::COUNT;
use crate::world::add;

/// Seconds that "lately" means.
const LATELY: usize = 5;

/// One command since the start.
#[derive(Default, Clone)]
pub struct Stat {
    pub calls: Cell<u64>,
    /// Microseconds from its arrival to its reply; none of commands that wait for something.
    pub total_us: Cell<u64>,
    pub max_us: Cell<u64>,
}

#[derive(Default, Clone, Copy)]
struct Second {
    replies: u64,
    total_us: u64,
    max_us: u64,
}

pub struct Stats {
    pub commands: Vec<Stat>,
    /// Microseconds from which on a command is slow.
    slow_us: Cell<u64>,
    now: Cell<Second>,
    lately: [Cell<Second>; LATELY],
    turn: Cell<usize>,
    seen: Cell<[u64; 3]>,
    /// Commands, bytes in, bytes out in the last whole second.
    pub rates: Cell<[u64; 3]>,
}

impl Default for Stats {
    fn default() -> Stats {
        Stats {
            commands: vec![Stat::default(); COUNT],
            slow_us: Cell::new(u64::MAX),
            now: Cell::default(),
            lately: Default::default(),
            turn: Cell::default(),
            seen: Cell::default(),
            rates: Cell::default(),
        }
    }
}

impl Stats {
    pub fn slow_from(&self, us: i64) {
        self.slow_us.set(u64::try_from(us).unwrap_or(u64::MAX));
    }

    #[inline]
    pub fn begins(&self, cmd: &Cmd) {
        add(&self.commands[cmd.id as usize].calls, 1);
    }

    /// A command has its reply. True: it was slow.
    #[inline]
    pub fn took(&self, cmd: &Cmd, us: u64) -> bool {
        let stat = &self.commands[cmd.id as usize];
        add(&stat.total_us, us);
        stat.max_us.set(stat.max_us.get().max(us));
        let now = self.now.get();
        self.now.set(Second { replies: now.replies + 1, total_us: now.total_us + us, max_us: now.max_us.max(us) });
        us >= self.slow_us.get()
    }

    /// Once a second.
    pub fn tick(&self, totals: [u64; 3]) {
        let turn = self.turn.get();
        self.lately[turn % LATELY].set(self.now.take());
        self.turn.set(turn + 1);
        let seen = self.seen.replace(totals);
        self.rates.set([0, 1, 2].map(|i| totals[i] - seen[i]));
    }

    /// Mean and longest time of the last seconds' commands, in milliseconds.
    pub fn latency_ms(&self) -> (f64, f64) {
        let all = self.lately.iter().map(Cell::get).chain([self.now.get()]);
        let sum = all.fold(Second::default(), |a, b| Second {
            replies: a.replies + b.replies,
            total_us: a.total_us + b.total_us,
            max_us: a.max_us.max(b.max_us),
        });
        (sum.total_us as f64 / sum.replies.max(1) as f64 / 1000.0, sum.max_us as f64 / 1000.0)
    }
}
