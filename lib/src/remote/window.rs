//! How much of one host is asked for at once: enough that its line never runs dry, and hardly more, since what is on its way when a run is cut off is lost.
//!
//! An answer comes behind all that was asked for before it. So it takes the time of the way there and back, and then that of what is open at the speed
//! of the line. The first is the least that an answer ever took; the second is held at [`AHEAD`], as TCP Vegas does (Brakmo and Peterson, 1995).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The line has something to do for this long when nothing more is asked for.
const AHEAD: Duration = Duration::from_millis(20);
/// Chunks that may be open: at first, at least, and at most.
const FIRST: usize = 4;
const LEAST: usize = 2;
const MOST: usize = 2048;
/// A request is sent when this part of the window is free.
const PARTS: usize = 8;

/// What is open with one host, and how much may be.
#[derive(Debug)]
pub(super) struct Window {
    /// Chunks that may be open.
    size: usize,
    /// Chunks that are.
    n_open: usize,
    /// The least time that an answer took.
    least: Duration,
    /// The requests that are open, the oldest first.
    asked: VecDeque<Asked>,
    /// When the size was changed: what was asked before tells nothing of it.
    changed: Option<Instant>,
}

#[derive(Debug)]
struct Asked {
    at: Instant,
    /// Whether it filled the window.
    fills: bool,
    n_chunks: usize,
    n_answered: usize,
}

impl Default for Window {
    fn default() -> Self {
        Self { size: FIRST, n_open: 0, least: Duration::MAX, asked: VecDeque::new(), changed: None }
    }
}

impl Window {
    /// Returns for how many chunks to ask next; 0 to wait.
    pub fn room(&self) -> usize {
        let room = self.size.saturating_sub(self.n_open);
        if room * PARTS < self.size { 0 } else { room }
    }

    /// Notes a request for `n_chunks`.
    pub fn asked(&mut self, n_chunks: usize, now: Instant) {
        self.n_open += n_chunks;
        self.asked.push_back(Asked { at: now, fills: self.room() == 0, n_chunks, n_answered: 0 });
    }

    /// Notes the answer about one chunk.
    pub fn answered(&mut self, now: Instant) {
        let Some(oldest) = self.asked.front_mut() else { return };
        self.n_open -= 1;
        oldest.n_answered += 1;
        let (at, fills, is_first) = (oldest.at, oldest.fills, oldest.n_answered == 1);
        if oldest.n_answered == oldest.n_chunks {
            self.asked.pop_front();
        }
        // Those behind the first waited for it, not for what was open before.
        if is_first {
            self.learn(at, fills, now);
        }
    }

    fn learn(&mut self, asked: Instant, filled: bool, now: Instant) {
        let time = now.saturating_duration_since(asked);
        self.least = self.least.min(time);
        if self.changed.is_some_and(|changed| asked < changed) {
            return;
        }
        let factor = match time - self.least < AHEAD / 4 {
            true => 2.0, // the line was idle
            false => ((self.least + AHEAD).as_secs_f64() / time.as_secs_f64()).max(0.5),
        };
        if filled || factor < 1.0 {
            self.size = ((self.size as f64 * factor).ceil() as usize).clamp(LEAST, MOST);
            self.changed = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks a host at the end of a way of so many milliseconds, whose line passes a chunk in `chunk` microseconds, for `n` chunks; returns how many are
    /// open in the end, at most how many were, and which part of the time the line had something to do.
    fn simulate(way: u64, chunk: u64, n: usize) -> (usize, usize, f64) {
        let (start, way, chunk) = (Instant::now(), Duration::from_millis(way), Duration::from_micros(chunk));
        let mut window = Window::default();
        let (mut now, mut free, mut busy) = (start, start, Duration::ZERO);
        let mut coming: VecDeque<Instant> = VecDeque::new();
        let (mut n_done, mut most, mut last) = (0, 0, 0);
        while n_done < n {
            let room = window.room();
            for _ in 0..room {
                free = free.max(now + way) + chunk;
                coming.push_back(free);
            }
            if room > 0 {
                window.asked(room, now);
                (most, last) = (most.max(coming.len()), coming.len());
            }
            (now, busy, n_done) = (coming.pop_front().unwrap(), busy + chunk, n_done + 1);
            window.answered(now);
        }
        (last, most, busy.as_secs_f64() / (now - start).as_secs_f64())
    }

    #[test]
    fn a_line_is_kept_busy_and_little_is_open() {
        // In milliseconds, microseconds for a chunk: a switch at 100 Mbit/s, the same over the sea, 1 Gbit/s over the sea, a modem.
        for (way, chunk, n) in [(1, 5_000, 2000), (100, 5_000, 5000), (200, 500, 100_000), (50, 2_000_000, 100)] {
            let (last, most, busy) = simulate(way, chunk, n);
            let needed = (way * 1000 + 20_000).div_ceil(chunk) as usize;
            assert!(busy > 0.95, "{way} ms, {chunk} us: busy {busy}");
            assert!(last <= 2 * needed + LEAST, "{way} ms, {chunk} us: {last} open, {needed} would do");
            assert!(most <= 3 * needed + 2 * FIRST, "{way} ms, {chunk} us: {most} open, {needed} would do");
        }
    }

    #[test]
    fn what_was_never_full_does_not_grow() {
        let mut window = Window::default();
        let mut now = Instant::now();
        for _ in 0..100 {
            window.asked(1, now);
            now += Duration::from_millis(1);
            window.answered(now);
        }
        assert_eq!(window.room(), FIRST);
        window.answered(now); // to nothing that was asked
    }
}
