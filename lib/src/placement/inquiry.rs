//! What must be known of others before a copy goes: who else has it, promises to keep it, and can read it now.

use std::collections::BTreeSet;
use std::time::Duration;

use super::HolderId;
use crate::error::{Error, Kind, Result};
use crate::id::ChunkId;

/// How careful a host is with its copies; all hosts should agree on the skew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How many others must hold what is dropped here.
    pub copies: usize,
    /// Within so many seconds after the question, removal begins.
    pub window: u64,
    /// By so many seconds two clocks may differ.
    pub max_skew: u64,
    /// A promise is given for so many seconds.
    pub period: u64,
}

impl Default for Terms {
    fn default() -> Self {
        Self { copies: 2, window: 600, max_skew: 60, period: 86_400 }
    }
}

/// A moment, by both clocks of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Seconds since 1970; people set this clock.
    pub wall: u64,
    /// Since the machine was started, sleep included; nobody sets this one.
    pub boot: Duration,
}

/// What one host said about the chunks of an inquiry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Who it is.
    pub holder: HolderId,
    /// What its clock says, in seconds since 1970.
    pub now: u64,
    /// For each chunk: until when it is promised, and a proof that it was read.
    pub promises: Vec<(u64, [u8; 32])>,
}

/// One question to all other holders, about some chunks.
#[derive(Debug)]
pub struct Inquiry {
    own: HolderId,
    terms: Terms,
    asked: Moment,
    /// The chunks, each with the proof that counts.
    chunks: Vec<(ChunkId, [u8; 32])>,
    n_copies: Vec<usize>,
    heard: BTreeSet<HolderId>,
}

impl Inquiry {
    /// Begins one at the moment `asked`: before the first question is sent. `chunks` have the proofs that were computed here.
    pub fn new(own: HolderId, terms: Terms, asked: Moment, chunks: Vec<(ChunkId, [u8; 32])>) -> Self {
        let n_copies = vec![0; chunks.len()];
        Self { own, terms, asked, chunks, n_copies, heard: BTreeSet::new() }
    }

    /// Counts an answer that came at the moment `at`. Who was heard already, is this host itself, or is no holder, does not count.
    ///
    /// Fails with [`Kind::Conflict`] if the clocks disagree.
    pub fn take(&mut self, answer: &Answer, at: Moment) -> Result<()> {
        let (earliest, latest) =
            (self.asked.wall.saturating_sub(self.terms.max_skew), at.wall.saturating_add(self.terms.max_skew));
        if !(earliest..=latest).contains(&answer.now) {
            let seconds = if answer.now < earliest { self.asked.wall - answer.now } else { answer.now - at.wall };
            let message = format!(
                "the clocks differ by {seconds} seconds, where {} are put up with, so nobody can tell which promises are over; set the clocks",
                self.terms.max_skew
            );
            return Err(Error::new(Kind::Conflict, message));
        }
        if answer.holder == self.own || answer.holder == HolderId::NONE || !self.heard.insert(answer.holder) {
            return Ok(());
        }
        let enough = at.wall.saturating_add(self.terms.window).saturating_add(2 * self.terms.max_skew);
        for ((n_copies, (_, expected)), (until, proof)) in self.n_copies.iter_mut().zip(&self.chunks).zip(&answer.promises) {
            *n_copies += usize::from(*until >= enough && proof == expected);
        }
        Ok(())
    }

    /// Returns how many others hold each chunk.
    pub fn n_copies(&self) -> &[usize] {
        &self.n_copies
    }

    /// Returns the chunks that may go, if their removal begins at the moment `now`.
    ///
    /// Fails with [`Kind::Conflict`] if that is too late, or the clock was set meanwhile.
    pub fn verdict(&self, now: Moment) -> Result<Vec<ChunkId>> {
        self.still_counts(now)?;
        let enough = self.chunks.iter().zip(&self.n_copies).filter(|(_, n)| **n >= self.terms.copies);
        Ok(enough.map(|((id, _), _)| *id).collect())
    }

    /// Fails with [`Kind::Conflict`] if it is too late to act on what was heard, or the clock was set meanwhile.
    pub fn still_counts(&self, now: Moment) -> Result<()> {
        let boot = now.boot.saturating_sub(self.asked.boot).as_secs();
        let wall = now.wall.checked_sub(self.asked.wall);
        if wall.is_none_or(|wall| wall.abs_diff(boot) > self.terms.max_skew) {
            return Err(Error::new(Kind::Conflict, "the clock was set while others were asked; try again"));
        }
        if boot > self.terms.window {
            let message =
                format!("others were asked {boot} seconds ago, and what they said counts for {}; try again", self.terms.window);
            return Err(Error::new(Kind::Conflict, message));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { copies: 2, window: 600, max_skew: 60, period: 86_400 };

    fn at(seconds: u64) -> Moment {
        Moment { wall: 1_000_000 + seconds, boot: Duration::from_secs(50 + seconds) }
    }

    fn holder(n: u8) -> HolderId {
        HolderId::of_key(&n.to_string())
    }

    fn inquiry() -> Inquiry {
        Inquiry::new(holder(0), TERMS, at(0), vec![(ChunkId::of(b"a"), [1; 32]), (ChunkId::of(b"b"), [2; 32])])
    }

    fn answer(n: u8, promises: [(u64, [u8; 32]); 2]) -> Answer {
        Answer { holder: holder(n), now: 1_000_000, promises: promises.to_vec() }
    }

    const LONG: u64 = 1_000_000 + 1 + 600 + 120;

    #[test]
    fn a_chunk_may_go_when_enough_others_promise_and_prove_it() {
        let good = [(LONG, [1; 32]), (LONG, [2; 32])];
        let cases: &[(&str, Vec<Answer>, usize)] = &[
            ("two others", vec![answer(1, good), answer(2, good)], 2),
            ("the same one twice", vec![answer(1, good), answer(1, good)], 0),
            ("one and we ourselves", vec![answer(1, good), answer(0, good)], 0),
            ("one and none", vec![answer(1, good), Answer { holder: HolderId::NONE, ..answer(2, good) }], 0),
            ("one for a moment too short", vec![answer(1, good), answer(2, [(LONG - 1, [1; 32]), (LONG, [2; 32])])], 1),
            ("one without proof", vec![answer(1, good), answer(2, [(LONG, [1; 32]), (LONG, [0; 32])])], 1),
            ("one that says less", vec![answer(1, good), Answer { promises: vec![(LONG, [1; 32])], ..answer(2, good) }], 1),
            ("one that promises nothing", vec![answer(1, good), answer(2, [(0, [1; 32]), (0, [2; 32])])], 0),
        ];
        for (name, answers, n) in cases {
            let mut inquiry = inquiry();
            answers.iter().for_each(|answer| inquiry.take(answer, at(1)).unwrap());
            assert_eq!(inquiry.verdict(at(2)).unwrap().len(), *n, "{name}: {:?}", inquiry.n_copies());
        }
    }

    #[test]
    fn clocks_that_differ_too_much_stop_everything() {
        let good = [(u64::MAX, [1; 32]), (u64::MAX, [2; 32])];
        for (now, is_fine) in
            [(0, false), (999_939, false), (999_940, true), (1_000_065, true), (1_000_066, false), (u64::MAX, false)]
        {
            let taken = inquiry().take(&Answer { now, ..answer(1, good) }, at(5));
            assert_eq!(taken.is_ok(), is_fine, "{now}");
        }
    }

    #[test]
    fn what_was_heard_counts_for_a_while() {
        let inquiry = inquiry();
        inquiry.verdict(at(600)).unwrap();
        inquiry.verdict(at(601)).unwrap_err();
        // The clock was set, or the machine slept and nobody told the clock.
        for wall in [0, 999_999, 1_000_000 + 90, 2_000_000] {
            inquiry.verdict(Moment { wall, ..at(10) }).unwrap_err();
        }
        inquiry.verdict(Moment { boot: at(100).boot, ..at(10) }).unwrap_err();
    }
}
