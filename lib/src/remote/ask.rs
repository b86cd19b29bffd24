//! Asks one host, one question at a time, and waits for the answer.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;

use super::client::{Client, Event};
use super::fetch::{Link, send, set_nonblocking};
use super::serve::is_ready;
use super::wire::{Want, violation};
use crate::error::{Context, Error, Kind, Result};
use crate::id::ChunkId;
use crate::placement::inquiry::Answer;

/// How long a host may take for one answer.
const ANSWER_TIME: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_millis(100);
const READ: usize = 64 << 10;

/// A line to one host, with nothing under way.
pub struct Line {
    link: Link,
    client: Client,
    outbox: VecDeque<u8>,
}

impl Line {
    /// Begins to talk on `link`.
    pub fn new(link: Link) -> Result<Self> {
        set_nonblocking(&link.input)?;
        set_nonblocking(&link.output)?;
        let mut line = Self { link, client: Client::default(), outbox: Client::greeting().into() };
        match line.answer()? {
            Event::Ready => Ok(line),
            _ => Err(violation("an answer came before the greeting")),
        }
    }

    /// Returns what the host is called.
    pub fn name(&self) -> &str {
        &self.link.name
    }

    /// Asks until when `chunks` are promised, and for proof under `nonce`; at most [`super::wire::MAX_PROVE`] of them.
    pub fn promises(&mut self, nonce: [u8; 32], chunks: Vec<ChunkId>) -> Result<Answer> {
        match self.ask(Want::Promise(nonce), chunks)? {
            Event::Promises(answer) => Ok(answer),
            _ => Err(violation("an answer came to another question")),
        }
    }

    /// Asks which of `chunks` are there; at most [`super::wire::MAX_HAVE`] of them.
    pub fn have(&mut self, chunks: Vec<ChunkId>) -> Result<Vec<(ChunkId, bool)>> {
        match self.ask(Want::Have, chunks)? {
            Event::Have(have) => Ok(have),
            _ => Err(violation("an answer came to another question")),
        }
    }

    fn ask(&mut self, want: Want, chunks: Vec<ChunkId>) -> Result<Event> {
        self.outbox.extend(self.client.ask(want, chunks));
        self.answer()
    }

    fn answer(&mut self) -> Result<Event> {
        let what = || format!("'{}' does not answer", self.link.name);
        let started = Instant::now();
        let mut buffer = vec![0; READ];
        loop {
            if let Some(event) =
                self.client.next_event().map_err(|error| error.wrap(format!("'{}' is not understood", self.link.name)))?
            {
                return Ok(event);
            }
            if started.elapsed() > ANSWER_TIME {
                return Err(Error::new(Kind::Io, format!("nothing came within {} seconds", ANSWER_TIME.as_secs())).wrap(what()));
            }
            send(&self.link.output, &mut self.outbox).context(what)?;
            if !is_ready(self.link.input.as_fd(), PollFlags::IN, TICK)? {
                continue;
            }
            match rustix::io::read(&self.link.input, &mut buffer[..]) {
                Ok(0) => return Err(Error::new(Kind::Io, "it ended the connection").wrap(what())),
                Ok(n) => self.client.receive(&buffer[..n]),
                Err(Errno::AGAIN | Errno::INTR) => (),
                Err(error) => return Err(Error::from(error).wrap(what())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::child::Words;
    use crate::placement::HolderId;
    use crate::placement::ledger::Ledger;
    use crate::remote::serve::{Served, serve};
    use crate::remote::wire;
    use crate::store::{Store, WriteOptions};

    /// Returns a line to a host with `store`, whose clock says 5000.
    fn line_to(store: &Store) -> Line {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let store = store.clone();
        std::thread::spawn(move || {
            drop(serve(&Served::new(&crate::store::Local::of(store.clone()), &|| 5000), theirs.as_fd(), theirs.as_fd()))
        });
        let input = OwnedFd::from(ours.try_clone().unwrap());
        Line::new(Link { name: "web1".into(), input, output: OwnedFd::from(ours), words: Words::default(), keeper: Box::new(()) })
            .unwrap()
    }

    #[test]
    fn a_holder_promises_and_proves_what_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(&dir.path().join("store")).unwrap();
        let writer = store.writer(WriteOptions::default()).unwrap();
        let chunks = [&b"kept"[..], b"lapsing", b"absent"];
        let ids = chunks.map(ChunkId::of);
        chunks[..2].iter().zip(ids).for_each(|(bytes, id)| assert!(writer.put(id, bytes).is_ok()));
        writer.finish().unwrap();
        let mut line = line_to(&store);
        let nonce = [3; 32];
        let nothing = Answer { holder: HolderId::NONE, now: 5000, promises: vec![(0, [0; 32]); 3] };
        assert_eq!(line.promises(nonce, ids.to_vec()).unwrap(), nothing, "it is no holder");
        let mut ledger = Ledger::new(HolderId::of_key("web1"));
        ledger.promise_until(7000);
        ledger.lapse([ids[1]]);
        ledger.promise_until(9000);
        ledger.write_lapsing(store.dir()).unwrap();
        ledger.write(store.dir()).unwrap();
        let proof = |at: usize| wire::proof(&nonce, chunks[at]);
        let promises = vec![(9000, proof(0)), (7000, proof(1)), (0, [0; 32])];
        let something = Answer { holder: ledger.holder, now: 5000, promises };
        assert_eq!(line.promises(nonce, ids.to_vec()).unwrap(), something, "in the same session");
        assert_eq!(line.have(ids.to_vec()).unwrap().into_iter().map(|(_, there)| there).collect::<Vec<_>>(), [true, true, false]);
        // A ledger that is damaged promises nothing, and chunks are served all the same.
        std::fs::write(store.dir().join("promises"), "x").unwrap();
        assert_eq!(line.promises(nonce, ids.to_vec()).unwrap(), nothing);
        assert!(line.have(ids.to_vec()).unwrap()[0].1);
    }

    #[test]
    fn who_is_gone_is_named() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let input = OwnedFd::from(ours.try_clone().unwrap());
        let link =
            Link { name: "web1".into(), input, output: OwnedFd::from(ours), words: Words::default(), keeper: Box::new(()) };
        let Err(error) = Line::new(link) else { panic!() };
        assert!(format!("{error:#}").contains("'web1' does not answer"), "{error:#}");
    }
}
