//! The side that answers: reads requests, sends chunks, changes nothing.
//!
//! [`Session`] knows the order and the time limits of the protocol and does no I/O; [`serve`] is the loop around it. One frame of the client and one
//! record of the store are in memory at a time.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::wire::{self, FromClient, FromServer, Request, Splitter, Want, violation};
use crate::error::{Context, Error, Kind, Result};
use crate::id::ChunkId;
use crate::placement::HolderId;
use crate::placement::ledger::{Ledger, LedgerStamp};
use crate::store::{Local, MAX_CHUNK};

/// How long the client may take until its hello is complete, and for the rest of a frame that began.
const FRAME_TIME: Duration = Duration::from_secs(10);
/// How long the client may have nothing to ask.
const IDLE_TIME: Duration = Duration::from_secs(60);
/// How long the client may leave what it asked for.
const SEND_TIME: Duration = Duration::from_secs(30);
/// Bytes read at once.
const READ: usize = 64 << 10;

/// One client: what it may say next, and until when.
#[derive(Debug)]
pub struct Session {
    splitter: Splitter,
    has_greeted: bool,
    /// When the frame began that is not complete, or the wait for one.
    since: Duration,
    waiting: VecDeque<FromClient>,
}

impl Session {
    /// Returns a session that begins at `now`; all times count from a moment of the caller's choice.
    pub fn new(now: Duration) -> Self {
        Self { splitter: Splitter::new(wire::MAX_REQUEST_FRAME), has_greeted: false, since: now, waiting: VecDeque::new() }
    }

    /// Takes bytes that came.
    pub fn receive(&mut self, bytes: &[u8], now: Duration) -> Result<()> {
        if !self.splitter.is_within_frame() {
            self.since = now;
        }
        self.splitter.push(bytes);
        while let Some((kind, body)) = self.splitter.next_frame()? {
            self.since = now;
            self.waiting.push_back(FromClient::decode(kind, body)?);
            if self.waiting.len() > wire::MAX_OPEN + usize::from(!self.has_greeted) {
                return Err(violation(format!("more than {} requests came before they could be answered", wire::MAX_OPEN)));
            }
        }
        Ok(())
    }

    /// Returns what is to be answered next: a greeting with the version that counts, or a request.
    pub fn next_step(&mut self) -> Result<Option<Step>> {
        match (self.waiting.pop_front(), self.has_greeted) {
            (None, _) => Ok(None),
            (Some(FromClient::Hello { lowest, highest }), false) => {
                self.has_greeted = true;
                match (lowest..=highest).contains(&wire::VERSION) {
                    true => Ok(Some(Step::Greet)),
                    false => Err(Error::new(
                        Kind::Unsupported,
                        format!("versions {lowest} to {highest} were offered, this program knows {}", wire::VERSION),
                    )),
                }
            }
            (Some(FromClient::Request(request)), true) => Ok(Some(Step::Answer(request))),
            _ => Err(violation("a greeting must come first, and once")),
        }
    }

    /// Notes that all was answered: from now on the client may think.
    pub fn answered(&mut self, now: Duration) {
        if !self.splitter.is_within_frame() {
            self.since = now;
        }
    }

    /// Returns the moment at which the session is over if nothing comes.
    pub fn deadline(&self) -> Duration {
        let is_slow = self.splitter.is_within_frame() || !self.has_greeted;
        self.since + if is_slow { FRAME_TIME } else { IDLE_TIME }
    }
}

/// What the server does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It greets.
    Greet,
    /// It answers a request.
    Answer(Request),
}

/// Why a session ends before the client ends it.
#[derive(Debug)]
pub enum End {
    /// The client is gone, or does not take its answers: nobody is left to tell.
    Gone,
    /// Something failed, here or in what the client said.
    Failed(Error),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Takes one frame to the client.
type Send<'a> = &'a mut dyn FnMut(FromServer) -> std::result::Result<(), End>;

/// What is served, and until when it is promised.
pub struct Served<'a> {
    local: &'a Local,
    clock: &'a dyn Fn() -> u64,
    /// The ledger, and what its files looked like when it was read.
    ledger: RefCell<Option<(LedgerStamp, Option<Ledger>)>>,
}

impl<'a> Served<'a> {
    /// Returns what serves `local`; `clock` tells the seconds since 1970.
    pub fn new(local: &'a Local, clock: &'a dyn Fn() -> u64) -> Self {
        Self { local, clock, ledger: RefCell::new(None) }
    }

    /// Proves that a chunk is there and tells until when it is promised; zeros for one that is not.
    fn promise(&self, ledger: Option<&Ledger>, nonce: &[u8; 32], id: &ChunkId) -> Result<(u64, [u8; 32])> {
        let Some(until) = ledger.map(|ledger| ledger.promise_of(id)).filter(|until| *until > 0) else { return Ok((0, [0; 32])) };
        let plain = present(self.local.store.read(id, MAX_CHUNK))?;
        Ok(plain.map_or((0, [0; 32]), |plain| (until, wire::proof(nonce, &plain))))
    }

    /// Hands the ledger as it is now to `take`; one that cannot be read promises nothing.
    fn with_ledger<T>(&self, take: impl FnOnce(Option<&Ledger>) -> T) -> T {
        let mut known = self.ledger.borrow_mut();
        let stamp = Ledger::stamp(self.local.store.dir());
        if known.as_ref().is_none_or(|(then, _)| *then != stamp) {
            *known = Some((stamp, Ledger::read(self.local.store.dir()).ok().flatten()));
        }
        take(known.as_ref().and_then(|(_, ledger)| ledger.as_ref()))
    }
}

/// Hands the frames that answer `request` to `send`, one at a time.
pub fn answer(served: &Served<'_>, request: &Request, send: Send<'_>) -> std::result::Result<(), End> {
    let (number, local) = (request.number, served.local);
    match request.want {
        Want::Get => {
            for (position, id) in request.ids.iter().enumerate() {
                let position = position as u16;
                send(match present(local.read_record(id))? {
                    Some(record) => FromServer::Chunk { number, position, record },
                    None => FromServer::Absent { number, position },
                })?;
            }
            Ok(())
        }
        Want::Have => {
            let mut bits = vec![0; request.ids.len().div_ceil(8)];
            for (at, id) in request.ids.iter().enumerate() {
                bits[at / 8] |= u8::from(local.contains(id)?) << (at % 8);
            }
            send(FromServer::Have { number, bits })
        }
        Want::Prove(nonce) => {
            let prove = |id: &ChunkId| -> Result<[u8; 32]> {
                // What may be evicted at any time proves nothing.
                let plain = present(local.store.read(id, MAX_CHUNK))?;
                Ok(plain.map_or([0; 32], |plain| wire::proof(&nonce, &plain)))
            };
            let hashes = request.ids.iter().map(prove).collect::<Result<_>>()?;
            send(FromServer::Proof { number, hashes })
        }
        Want::Promise(nonce) => {
            let (holder, promises) = served.with_ledger(|ledger| -> Result<_> {
                let promises: Vec<_> = request.ids.iter().map(|id| served.promise(ledger, &nonce, id)).collect::<Result<_>>()?;
                Ok((ledger.map_or(HolderId::NONE, |ledger| ledger.holder), promises))
            })?;
            send(FromServer::Promises { number, holder, now: (served.clock)(), promises })
        }
    }
}

/// Takes a chunk that is missing or damaged for absent: who asks finds it elsewhere, and `check` names it here.
fn present<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == Kind::Bug => Err(error),
        // One sector that cannot be read is no reason to keep all else back.
        Err(_) => Ok(None),
    }
}

/// Answers one client until it ends the connection. One that breaks the rules is told why, and is an error here.
///
/// Sets both streams to non-blocking.
pub fn serve(served: &Served<'_>, input: BorrowedFd<'_>, output: BorrowedFd<'_>) -> Result<()> {
    for stream in [input, output] {
        let flags = rustix::fs::fcntl_getfl(stream).context(|| "cannot use the connection")?;
        rustix::fs::fcntl_setfl(stream, flags | OFlags::NONBLOCK).context(|| "cannot use the connection")?;
    }
    let mut send = |frame: FromServer| send_all(output, &frame.encode());
    match converse(served, input, &mut send) {
        Err(End::Failed(error)) => {
            // Names of files, and what is wrong with them, are none of the client's business.
            let is_theirs = matches!(error.kind(), Kind::Refused | Kind::Unsupported);
            let text = if is_theirs { error.to_string() } else { "the server cannot go on".to_owned() };
            let _ = send(FromServer::Failure { number: 0, text });
            Err(error)
        }
        Ok(()) | Err(End::Gone) => Ok(()),
    }
}

fn converse(served: &Served<'_>, input: BorrowedFd<'_>, send: Send<'_>) -> std::result::Result<(), End> {
    let started = Instant::now();
    let mut session = Session::new(Duration::ZERO);
    let mut buffer = vec![0; READ];
    loop {
        while let Some(step) = session.next_step()? {
            match step {
                Step::Greet => send(FromServer::Hello { version: wire::VERSION })?,
                Step::Answer(request) => answer(served, &request, send)?,
            }
            session.answered(started.elapsed());
        }
        if !is_ready(input, PollFlags::IN, session.deadline().saturating_sub(started.elapsed()))? {
            return Err(violation("nothing came for too long").into());
        }
        match rustix::io::read(input, &mut buffer[..]) {
            Ok(0) => return Ok(()),
            Ok(n) => session.receive(&buffer[..n], started.elapsed())?,
            Err(Errno::AGAIN | Errno::INTR) => (),
            Err(_) => return Err(End::Gone),
        }
    }
}

fn send_all(output: BorrowedFd<'_>, mut bytes: &[u8]) -> std::result::Result<(), End> {
    while !bytes.is_empty() {
        match rustix::io::write(output, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => (),
            Err(Errno::AGAIN) if is_ready(output, PollFlags::OUT, SEND_TIME)? => (),
            Err(_) => return Err(End::Gone),
        }
    }
    Ok(())
}

/// Waits until a stream can be used, or has ended; returns whether that was in time.
pub(super) fn is_ready(stream: BorrowedFd<'_>, flags: PollFlags, time: Duration) -> Result<bool> {
    let until = Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::from_borrowed_fd(stream, flags)], Some(&left)) {
            Ok(n) => return Ok(n > 0),
            Err(Errno::INTR) => (),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::super::client::{Client, Event};
    use super::*;
    use crate::error::Reason;
    use crate::store::{Record, Store, WriteOptions};

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn hello() -> Vec<u8> {
        Client::greeting()
    }

    fn request(want: Want, ids: Vec<ChunkId>) -> Vec<u8> {
        FromClient::Request(Request { number: 1, want, ids }).encode()
    }

    #[test]
    fn a_greeting_comes_first_and_once() {
        let get = request(Want::Get, vec![ChunkId::of(b"")]);
        let steps = |bytes: &[&[u8]]| -> Result<usize> {
            let mut session = Session::new(at(0));
            session.receive(&bytes.concat(), at(0))?;
            let mut n_steps = 0;
            while session.next_step()?.is_some() {
                n_steps += 1;
            }
            Ok(n_steps)
        };
        assert_eq!(steps(&[&hello(), &get, &get]).unwrap(), 3);
        assert_eq!(steps(&[&hello()[..5]]).unwrap(), 0);
        for wrong in [&[&get[..]][..], &[&hello(), &hello()], &[&get, &hello()]] {
            assert_eq!(steps(wrong).unwrap_err().reason(), Some(Reason::Proto));
        }
        let newer = FromClient::Hello { lowest: 2, highest: 9 }.encode();
        assert_eq!(steps(&[&newer]).unwrap_err().kind(), Kind::Unsupported);
        let both = FromClient::Hello { lowest: 0, highest: u16::MAX }.encode();
        assert_eq!(steps(&[&both]).unwrap(), 1);
        steps(&[&hello(), &get.repeat(wire::MAX_OPEN + 1)]).unwrap_err();
    }

    #[test]
    fn who_dawdles_is_given_up_in_time() {
        let mut session = Session::new(at(0));
        assert_eq!(session.deadline(), at(10));
        // A byte now and then does not help.
        for (second, byte) in (1..).zip(&hello()[..5]) {
            session.receive(&[*byte], at(second)).unwrap();
        }
        assert_eq!(session.deadline(), at(11));
        session.receive(&hello()[5..], at(6)).unwrap();
        session.next_step().unwrap();
        session.answered(at(6));
        assert_eq!(session.deadline(), at(66), "nothing is asked");
        session.receive(&request(Want::Get, vec![ChunkId::of(b"")])[..3], at(50)).unwrap();
        session.receive(&[0], at(55)).unwrap();
        assert_eq!(session.deadline(), at(60), "a frame is not complete");
    }

    /// A store with some chunks, and a client at the other end of a connection.
    struct World {
        dir: tempfile::TempDir,
        store: Store,
        ids: Vec<ChunkId>,
    }

    impl World {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::create(&dir.path().join("store")).unwrap();
            let writer = store.writer(WriteOptions::default()).unwrap();
            let chunks = [&b"plain"[..], &b"compressible ".repeat(1000), b""];
            let ids = chunks.iter().map(|bytes| (ChunkId::of(bytes), bytes)).map(|(id, bytes)| {
                writer.put(id, bytes).unwrap();
                id
            });
            let ids = ids.collect();
            writer.finish().unwrap();
            Self { dir, store, ids }
        }

        /// Sends `bytes` to a server and returns how it ended, and all that it answered.
        fn talk(&self, bytes: &[u8]) -> (Result<()>, Vec<u8>) {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            std::thread::scope(|scope| {
                let server = scope.spawn(|| {
                    let theirs = theirs;
                    serve(&Served::new(&Local::of(self.store.clone()), &|| 7), theirs.as_fd(), theirs.as_fd())
                });
                let mut answers = Vec::new();
                let mut reader = ours.try_clone().unwrap();
                let reading = scope.spawn(move || {
                    reader.read_to_end(&mut answers).unwrap();
                    answers
                });
                let _ = ours.write_all(bytes);
                ours.shutdown(std::net::Shutdown::Write).unwrap();
                (server.join().unwrap(), reading.join().unwrap())
            })
        }
    }

    #[test]
    fn a_client_gets_what_is_there_and_stores_it_as_it_is() {
        let world = World::new();
        let mut wanted = world.ids.clone();
        wanted.insert(1, ChunkId::of(b"not there"));
        let mut client = Client::default();
        let nonce = [3; 32];
        let mut bytes = Client::greeting();
        for want in [Want::Have, Want::Get, Want::Prove(nonce)] {
            bytes.extend(client.ask(want, wanted.clone()));
        }
        let (end, answers) = world.talk(&bytes);
        end.unwrap();
        client.receive(&answers);
        let copy = Store::create(&world.dir.path().join("copy")).unwrap();
        let writer = copy.writer(WriteOptions::default()).unwrap();
        let (mut plain, mut n_absent) = (Vec::new(), 0);
        while let Some(event) = client.next_event().unwrap() {
            match event {
                Event::Ready => (),
                Event::Have(have) => assert_eq!(have, wanted.iter().map(|id| (*id, *id != wanted[1])).collect::<Vec<_>>()),
                Event::Chunk(id, record) => {
                    writer.put_record(&Record::verify(&record, &id, 13_000, &mut plain).unwrap()).unwrap();
                    assert_eq!(ChunkId::of(&plain), id);
                }
                Event::Absent(id) => {
                    assert_eq!(id, wanted[1]);
                    n_absent += 1;
                }
                Event::Promises(_) => panic!("nobody asked"),
                Event::Proof(proofs) => {
                    for (id, proof) in proofs {
                        let expected = world.store.read(&id, MAX_CHUNK).map_or([0; 32], |plain| wire::proof(&nonce, &plain));
                        assert_eq!(proof, expected);
                    }
                }
            }
        }
        assert_eq!((client.n_open(), n_absent), (0, 1));
        writer.finish().unwrap();
        for id in &world.ids {
            assert_eq!(copy.read(id, MAX_CHUNK).unwrap(), world.store.read(id, MAX_CHUNK).unwrap());
            assert_eq!(copy.read_record(id).unwrap(), world.store.read_record(id).unwrap(), "compressed once");
        }
        assert_eq!(copy.check(true, &crate::progress::Progress::default()).unwrap(), []);
    }

    #[test]
    fn a_record_that_is_not_what_was_asked_for_is_not_stored() {
        let world = World::new();
        let record = world.store.read_record(&world.ids[1]).unwrap();
        let flipped = |at: usize| {
            let mut bytes = record.clone();
            bytes[at] ^= 1;
            bytes
        };
        let verify = |id: &ChunkId, record: &[u8], max_len| Record::verify(record, id, max_len, &mut Vec::new()).map(drop);
        verify(&world.ids[1], &record, 13_000).unwrap();
        verify(&world.ids[0], &record, 13_000).unwrap_err();
        verify(&world.ids[1], &record, 12_999).unwrap_err();
        verify(&world.ids[1], &record[..record.len() - 1], 13_000).unwrap_err();
        verify(&world.ids[1], &[&record[..], b"x"].concat(), 13_000).unwrap_err();
        for at in 0..record.len() {
            verify(&world.ids[1], &flipped(at), 13_000).unwrap_err();
        }
    }

    #[test]
    fn who_breaks_the_rules_is_told_why_and_nothing_more() {
        let world = World::new();
        let oversized = (wire::MAX_REQUEST_FRAME as u32 + 1).to_le_bytes();
        let cases: [&[u8]; 5] =
            [b"GET / HTTP/1.1\r\n\r\n", &oversized, &[0; 4], &[1, 0, 0, 0, 99], &request(Want::Get, world.ids.clone())];
        for bytes in cases {
            let (end, answers) = world.talk(bytes);
            assert_eq!(end.unwrap_err().reason(), Some(Reason::Proto), "{bytes:?}");
            let mut splitter = Splitter::new(wire::MAX_ANSWER_FRAME);
            splitter.push(&answers);
            let (kind, body) = splitter.next_frame().unwrap().unwrap();
            assert!(matches!(FromServer::decode(kind, body).unwrap(), FromServer::Failure { number: 0, .. }));
            assert!(!splitter.is_within_frame());
        }
    }

    #[test]
    fn a_client_that_takes_nothing_costs_no_memory_and_ends() {
        let world = World::new();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let asks = request(Want::Get, vec![world.ids[1]; wire::MAX_GET]);
        ours.write_all(&[hello(), asks.clone()].concat()).unwrap();
        let server = std::thread::scope(|scope| {
            let server = scope.spawn(|| {
                let theirs = theirs;
                serve(&Served::new(&Local::of(world.store.clone()), &|| 0), theirs.as_fd(), theirs.as_fd())
            });
            std::thread::sleep(Duration::from_millis(200));
            drop(ours);
            server.join().unwrap()
        });
        server.unwrap();
    }
}
