//! The side that asks: what was asked, and whether what comes answers it. Nothing here reads, writes or waits.

use std::collections::VecDeque;

use super::wire::{self, FromClient, FromServer, Request, Splitter, Want, violation};
use crate::error::{Error, Kind, Result};
use crate::id::ChunkId;
use crate::placement::inquiry::Answer;

/// What another host answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It greeted, and may be asked from now on.
    Ready,
    /// The record of a chunk that was asked for; not verified.
    Chunk(ChunkId, Vec<u8>),
    /// A chunk that was asked for is not there.
    Absent(ChunkId),
    /// Whether chunks are there.
    Have(Vec<(ChunkId, bool)>),
    /// What ought to be [`wire::proof`] of chunks, zeros for one that is not there.
    Proof(Vec<(ChunkId, [u8; 32])>),
    /// What it promises of the chunks of the oldest request; proofs are not verified.
    Promises(Answer),
}

/// The requests of one connection.
#[derive(Debug)]
pub struct Client {
    splitter: Splitter,
    is_ready: bool,
    next_number: u32,
    /// The oldest first, each with the ids that were answered.
    open: VecDeque<(Request, usize)>,
}

impl Default for Client {
    fn default() -> Self {
        Self { splitter: Splitter::new(wire::MAX_ANSWER_FRAME), is_ready: false, next_number: 1, open: VecDeque::new() }
    }
}

impl Client {
    /// Returns the first frame to send.
    pub fn greeting() -> Vec<u8> {
        FromClient::Hello { lowest: wire::VERSION, highest: wire::VERSION }.encode()
    }

    /// Notes a request and returns its frame.
    ///
    /// # Panics
    ///
    /// If there are more ids than one request may have, or none.
    pub fn ask(&mut self, want: Want, ids: Vec<ChunkId>) -> Vec<u8> {
        assert!((1..=want.most()).contains(&ids.len()), "BUG: a request for {} chunks", ids.len());
        let request = Request { number: self.next_number, want, ids };
        self.next_number = self.next_number.wrapping_add(1).max(1);
        let frame = FromClient::Request(request.clone()).encode();
        self.open.push_back((request, 0));
        frame
    }

    /// Returns how many requests are not answered as a whole.
    pub fn n_open(&self) -> usize {
        self.open.len()
    }

    /// Returns the chunks that were asked for and not answered: for another host, when this one fails.
    pub fn unanswered(&self) -> impl Iterator<Item = ChunkId> + '_ {
        self.open.iter().flat_map(|(request, n_done)| request.ids[*n_done..].iter().copied())
    }

    /// Takes bytes that came.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.splitter.push(bytes);
    }

    /// Returns what came, one answer at a time; fails if it answers nothing that was asked.
    pub fn next_event(&mut self) -> Result<Option<Event>> {
        let Some((kind, body)) = self.splitter.next_frame()? else { return Ok(None) };
        let frame = FromServer::decode(kind, body)?;
        match frame {
            FromServer::Failure { text, .. } => Err(Error::new(Kind::Io, format!("it says: {}", text.escape_debug()))),
            FromServer::Hello { version } if !self.is_ready && version == wire::VERSION => {
                self.is_ready = true;
                Ok(Some(Event::Ready))
            }
            FromServer::Hello { .. } => Err(violation("a greeting came that does not fit")),
            _ if !self.is_ready => Err(violation("an answer came before the greeting")),
            FromServer::Chunk { number, position, record } => {
                let id = self.answered(number, position)?;
                Ok(Some(Event::Chunk(id, record)))
            }
            FromServer::Absent { number, position } => Ok(Some(Event::Absent(self.answered(number, position)?))),
            FromServer::Have { number, bits } => {
                let ids = self.answered_at_once(number, |want| want == Want::Have)?;
                let is_exact = bits.len() == ids.len().div_ceil(8)
                    && (ids.len()..8 * bits.len()).all(|at| bits[at / 8] & (1 << (at % 8)) == 0);
                match is_exact {
                    true => Ok(Some(Event::Have(
                        ids.into_iter().enumerate().map(|(at, id)| (id, bits[at / 8] & (1 << (at % 8)) != 0)).collect(),
                    ))),
                    false => Err(violation("an answer came that is not about what was asked")),
                }
            }
            FromServer::Proof { number, hashes } => {
                let ids = self.answered_at_once(number, |want| matches!(want, Want::Prove(_)))?;
                match hashes.len() == ids.len() {
                    true => Ok(Some(Event::Proof(ids.into_iter().zip(hashes).collect()))),
                    false => Err(violation("an answer came that is not about what was asked")),
                }
            }
            FromServer::Promises { number, holder, now, promises } => {
                let ids = self.answered_at_once(number, |want| matches!(want, Want::Promise(_)))?;
                match promises.len() == ids.len() {
                    true => Ok(Some(Event::Promises(Answer { holder, now, promises }))),
                    false => Err(violation("an answer came that is not about what was asked")),
                }
            }
        }
    }

    /// Returns which chunk an answer is about, if it is the next one that is due.
    fn answered(&mut self, number: u32, position: u16) -> Result<ChunkId> {
        let Some((request, n_done)) = self.open.front_mut() else { return Err(unasked()) };
        if request.want != Want::Get || request.number != number || *n_done != usize::from(position) {
            return Err(unasked());
        }
        let id = request.ids[*n_done];
        *n_done += 1;
        if *n_done == request.ids.len() {
            self.open.pop_front();
        }
        Ok(id)
    }

    fn answered_at_once(&mut self, number: u32, is_meant: impl Fn(Want) -> bool) -> Result<Vec<ChunkId>> {
        match self.open.pop_front() {
            Some((request, _)) if request.number == number && is_meant(request.want) => Ok(request.ids),
            Some(other) => {
                self.open.push_front(other);
                Err(unasked())
            }
            None => Err(unasked()),
        }
    }
}

fn unasked() -> Error {
    violation("an answer came to something that was not asked, or was answered")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reason;

    fn ids(n: usize) -> Vec<ChunkId> {
        (0..n).map(|i| ChunkId::of(&i.to_le_bytes())).collect()
    }

    fn greeted() -> Client {
        let mut client = Client::default();
        client.receive(&FromServer::Hello { version: 1 }.encode());
        assert_eq!(client.next_event().unwrap(), Some(Event::Ready));
        client
    }

    #[test]
    fn answers_come_in_the_order_of_the_requests() {
        let mut client = greeted();
        client.ask(Want::Get, ids(2));
        client.ask(Want::Have, ids(9));
        client.ask(Want::Prove([7; 32]), ids(1));
        let answers = [
            FromServer::Chunk { number: 1, position: 0, record: b"record".to_vec() },
            FromServer::Absent { number: 1, position: 1 },
            FromServer::Have { number: 2, bits: vec![0b1000_0001, 1] },
            FromServer::Proof { number: 3, hashes: vec![[5; 32]] },
        ];
        client.receive(&answers.iter().flat_map(FromServer::encode).collect::<Vec<u8>>());
        assert_eq!(client.next_event().unwrap(), Some(Event::Chunk(ids(1)[0], b"record".to_vec())));
        assert_eq!(client.unanswered().count(), 1 + 9 + 1);
        assert_eq!(client.next_event().unwrap(), Some(Event::Absent(ids(2)[1])));
        let Some(Event::Have(have)) = client.next_event().unwrap() else { panic!() };
        assert_eq!(have.iter().map(|(_, is_there)| u8::from(*is_there)).collect::<Vec<_>>(), [1, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(client.next_event().unwrap(), Some(Event::Proof(vec![(ids(1)[0], [5; 32])])));
        assert_eq!((client.next_event().unwrap(), client.n_open()), (None, 0));
    }

    #[test]
    fn what_answers_nothing_that_was_asked_ends_the_connection() {
        let chunk = |number, position| FromServer::Chunk { number, position, record: vec![0; 64] };
        let wrong: [&[FromServer]; 11] = [
            &[chunk(2, 0)],
            &[chunk(1, 1)],
            &[chunk(1, 0), chunk(1, 0)],
            &[chunk(1, 0), chunk(1, 1), chunk(1, 2)],
            &[FromServer::Have { number: 1, bits: vec![1] }],
            &[FromServer::Proof { number: 1, hashes: vec![[0; 32]; 2] }],
            &[chunk(1, 0), chunk(1, 1), FromServer::Have { number: 2, bits: vec![0; 2] }],
            &[chunk(1, 0), chunk(1, 1), FromServer::Have { number: 2, bits: vec![8] }],
            &[chunk(1, 0), chunk(1, 1), FromServer::Have { number: 3, bits: vec![0] }],
            &[chunk(1, 0), chunk(1, 1), chunk(2, 0)],
            &[FromServer::Hello { version: 1 }],
        ];
        for answers in wrong {
            let mut client = greeted();
            client.ask(Want::Get, ids(2));
            client.ask(Want::Have, ids(3));
            client.receive(&answers.iter().flat_map(FromServer::encode).collect::<Vec<u8>>());
            let error = loop {
                match client.next_event() {
                    Ok(Some(_)) => (),
                    Ok(None) => panic!("{answers:?} was taken"),
                    Err(error) => break error,
                }
            };
            assert_eq!(error.reason(), Some(Reason::Proto), "{answers:?}");
        }
    }

    #[test]
    fn nothing_counts_before_the_greeting_and_other_versions_do_not() {
        for first in [FromServer::Absent { number: 1, position: 0 }, FromServer::Hello { version: 2 }] {
            let mut client = Client::default();
            client.ask(Want::Get, ids(1));
            client.receive(&first.encode());
            client.next_event().unwrap_err();
        }
    }
}
