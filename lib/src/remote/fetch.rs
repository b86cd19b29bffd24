//! Gets chunks from many hosts at once: each is asked for what it can bring, the faster ones bring more, and what one fails to bring another does.
//!
//! One thread for each host holds the connection, verifies what comes and hands it to the sink. A host that stalls, dies, lies or is cut off costs its
//! open requests at most. When nothing is left to ask for, what others are slow to bring is asked for once more.
//!
//! [`fetch`] gets what is known from the start; a [`Fetcher`] stays connected and gets what is wanted as one goes along.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;

use super::client::{Client, Event};
use super::serve::is_ready;
use super::window::Window;
use super::wire::{MAX_GET, MAX_OPEN, Want, violation};
use crate::child::Words;
use crate::error::{Context, Error, Kind, Result};
use crate::id::ChunkId;
use crate::progress::Progress;
use crate::store::Record;

/// A host that is asked and brings fewer bytes than this within [`STALL_TIME`] is given up.
const STALL_BYTES: u64 = 10 << 10;
const STALL_TIME: Duration = Duration::from_secs(10);
/// What another host has been asked for so long may be asked for again by one that has nothing else to do.
const SLOW: Duration = Duration::from_secs(1);
/// How often a thread looks whether something changed.
const TICK: Duration = Duration::from_millis(100);
/// How often a host that has nothing to do is asked something small, so that it does not take us for gone.
const PING: Duration = Duration::from_secs(20);
const READ: usize = 256 << 10;
/// How long what a host says for people may take after it failed.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// A chunk that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Which.
    pub id: ChunkId,
    /// How long it can be at most, in plain bytes; a host that sends more lied.
    pub max_len: usize,
}

/// A connection to a host that answers as [`super::serve`] does. Dropping it ends the connection.
pub struct Link {
    /// What to call the host.
    pub name: String,
    /// What it says.
    pub input: OwnedFd,
    /// What it hears.
    pub output: OwnedFd,
    /// What it says beside that, for people: told when it fails.
    pub words: Words,
    /// What keeps the connection, and ends it when dropped.
    pub keeper: Box<dyn Send>,
}

impl Link {
    /// Keeps `other` for as long as the connection.
    pub fn keeping(mut self, other: impl Send + 'static) -> Self {
        self.keeper = Box::new((self.keeper, other));
        self
    }
}

/// What became of one host.
#[derive(Debug)]
pub struct Served {
    /// What it is called.
    pub name: String,
    /// Chunks that it brought, and that were taken.
    pub n_chunks: u64,
    /// Bytes that it sent, all of them.
    pub n_bytes: u64,
    /// Why it was given up.
    pub failure: Option<Error>,
}

/// What became of all that was wanted.
#[derive(Debug)]
pub struct Fetched {
    /// Chunks that no host brought.
    pub missing: Vec<ChunkId>,
    /// The hosts, in the order of the links.
    pub hosts: Vec<Served>,
}

/// Takes a chunk that was verified: its record, and its plain bytes. An error ends the whole fetch.
pub type Sink<'a> = &'a (dyn Fn(&Record<'_>, &[u8]) -> Result<()> + Sync);

/// Gets what is `wanted`, each chunk once, from whoever of `links` brings it.
///
/// What the hosts failed at is in the outcome, not an error: an error is one of the sink.
pub fn fetch(links: Vec<Link>, wanted: Vec<Wanted>, sink: Sink<'_>, progress: &Progress) -> Result<Fetched> {
    let count = |record: &Record<'_>, plain: &[u8]| {
        progress.add(0, plain.len() as u64);
        sink(record, plain)
    };
    let queue = Mutex::new(Queue::new(wanted, links.len()));
    let shared = Shared { queue, wake: Condvar::new(), sink: Box::new(count), lost: None };
    let hosts = std::thread::scope(|scope| {
        let threads: Vec<_> = links
            .into_iter()
            .enumerate()
            .map(|(host, link)| {
                let shared = &shared;
                scope.spawn(move || shared.serve_with(host, link))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("BUG: a thread that fetches panicked")).collect()
    });
    let queue = shared.queue.into_inner().unwrap_or_else(PoisonError::into_inner);
    match queue.failure {
        Some(failure) => Err(failure),
        None => Ok(Fetched { missing: queue.left(), hosts }),
    }
}

/// What is done with the plain bytes of a chunk, which were verified; `None` if no host brings it. It must not wait for long: its host does, too.
pub type Then = Box<dyn FnOnce(Option<&[u8]>) + Send>;

/// Who waits for which chunk.
type Waiting = Arc<Mutex<HashMap<ChunkId, Vec<Then>>>>;

/// Connections to hosts that bring chunks as they are wanted. Dropping it ends them.
pub struct Fetcher {
    shared: Arc<Shared<'static>>,
    waiting: Waiting,
    threads: Mutex<Vec<JoinHandle<Served>>>,
}

impl Fetcher {
    /// Starts to talk to all of `links`. Each chunk that comes is handed to `keep` before anyone else sees it.
    pub fn start(links: Vec<Link>, keep: impl Fn(&Record<'_>) + Send + Sync + 'static) -> Self {
        let waiting = Waiting::default();
        let (for_sink, for_lost) = (Arc::clone(&waiting), Arc::clone(&waiting));
        let sink = move |record: &Record<'_>, plain: &[u8]| {
            keep(record);
            call(&for_sink, &record.id(), Some(plain));
            Ok(())
        };
        let mut queue = Queue::new(Vec::new(), links.len());
        queue.is_open = true;
        let lost = move |id: &ChunkId| call(&for_lost, id, None);
        let shared = Shared { queue: Mutex::new(queue), wake: Condvar::new(), sink: Box::new(sink), lost: Some(Box::new(lost)) };
        let shared = Arc::new(shared);
        let threads = links.into_iter().enumerate().map(|(number, link)| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || shared.serve_with(number, link))
        });
        let threads = Mutex::new(threads.collect());
        Self { threads, shared, waiting }
    }

    /// Asks for a chunk; `then` is called once, from another thread or, if there is nobody to ask, from this one.
    pub fn want(&self, wanted: Wanted, then: Then) {
        match self.waiting.lock().unwrap_or_else(PoisonError::into_inner).entry(wanted.id) {
            Entry::Occupied(mut entry) => return entry.get_mut().push(then),
            Entry::Vacant(entry) => drop(entry.insert(vec![then])),
        }
        self.shared.queue().add(wanted);
        self.shared.tell_lost();
        self.shared.wake.notify_all();
    }

    /// Ends all connections, and says what came of them; what is wanted from now on does not come.
    pub fn finish(&self) -> Vec<Served> {
        self.shared.queue().close();
        self.shared.wake.notify_all();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        threads.into_iter().map(|thread| thread.join().expect("BUG: a thread that fetches panicked")).collect()
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        self.finish();
    }
}

fn call(waiting: &Waiting, id: &ChunkId, plain: Option<&[u8]>) {
    let thens = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    thens.into_iter().flatten().for_each(|then| then(plain));
}

struct Shared<'a> {
    queue: Mutex<Queue>,
    wake: Condvar,
    sink: Took<'a>,
    lost: Option<Lost<'a>>,
}

/// Takes what came, as a [`Sink`] does.
type Took<'a> = Box<dyn Fn(&Record<'_>, &[u8]) -> Result<()> + Send + Sync + 'a>;
/// Is told of each chunk that no host brings, where somebody waits for it.
type Lost<'a> = Box<dyn Fn(&ChunkId) + Send + Sync + 'a>;

/// What is wanted, and who is asked for it.
struct Queue {
    todo: VecDeque<Wanted>,
    flying: HashMap<ChunkId, Flight>,
    /// Hosts that do not have a chunk.
    absent: HashMap<ChunkId, Vec<usize>>,
    is_alive: Vec<bool>,
    missing: Vec<ChunkId>,
    failure: Option<Error>,
    /// Whether more may be wanted later.
    is_open: bool,
}

struct Flight {
    wanted: Wanted,
    hosts: Vec<usize>,
    since: Instant,
}

impl Queue {
    fn new(mut wanted: Vec<Wanted>, n_hosts: usize) -> Self {
        let mut seen = HashSet::new();
        wanted.retain(|wanted| seen.insert(wanted.id));
        Self {
            todo: wanted.into(),
            flying: HashMap::new(),
            absent: HashMap::new(),
            is_alive: vec![true; n_hosts],
            missing: Vec::new(),
            failure: None,
            is_open: false,
        }
    }

    fn is_over(&self) -> bool {
        self.failure.is_some() || !self.is_open && self.todo.is_empty() && self.flying.is_empty()
    }

    /// Notes that a chunk is wanted that nobody is asked for.
    fn add(&mut self, wanted: Wanted) {
        match self.is_open && self.is_alive.contains(&true) {
            true => self.todo.push_back(wanted),
            false => self.missing.push(wanted.id),
        }
    }

    /// Forgets what is wanted.
    fn close(&mut self) {
        self.is_open = false;
        self.todo.clear();
        self.flying.clear();
    }

    /// Returns up to `n` chunks to ask `host` for.
    fn take(&mut self, host: usize, n: usize, now: Instant) -> Vec<Wanted> {
        let n_alive = self.is_alive.iter().filter(|is_alive| **is_alive).count().max(1);
        // Towards the end smaller ones, so that no host has much to do when the others are done.
        let n_new = n.min(self.todo.len().div_ceil(2 * n_alive)).max(1);
        let mut taken = Vec::new();
        let mut passed = Vec::new();
        while taken.len() < n_new
            && let Some(wanted) = self.todo.pop_front()
        {
            match self.lacks(host, &wanted.id) {
                true => passed.push(wanted),
                false => taken.push(wanted),
            }
        }
        passed.into_iter().rev().for_each(|wanted| self.todo.push_front(wanted));
        for wanted in &taken {
            self.flying.insert(wanted.id, Flight { wanted: *wanted, hosts: vec![host], since: now });
        }
        if taken.is_empty() {
            let slow = self
                .flying
                .values_mut()
                .filter(|flight| !flight.hosts.contains(&host) && now.saturating_duration_since(flight.since) > SLOW);
            let slow: Vec<ChunkId> = slow.map(|flight| flight.wanted.id).collect();
            for id in slow.into_iter().filter(|id| !self.lacks(host, id)).take(n).collect::<Vec<_>>() {
                let flight = self.flying.get_mut(&id).expect("BUG: it flies");
                flight.hosts.push(host);
                flight.since = now;
                taken.push(flight.wanted);
            }
        }
        taken
    }

    fn lacks(&self, host: usize, id: &ChunkId) -> bool {
        self.absent.get(id).is_some_and(|hosts| hosts.contains(&host))
    }

    /// Notes that a chunk is here; returns whether it was still wanted.
    fn arrived(&mut self, id: &ChunkId) -> bool {
        self.absent.remove(id);
        self.flying.remove(id).is_some()
    }

    /// Notes that `host` does not have a chunk.
    fn is_absent(&mut self, host: usize, id: &ChunkId) {
        if self.flying.contains_key(id) {
            self.absent.entry(*id).or_default().push(host);
        }
        self.put_back(host, id);
    }

    /// Notes that `host` will not bring a chunk: another one has to.
    fn put_back(&mut self, host: usize, id: &ChunkId) {
        let Some(flight) = self.flying.get_mut(id) else { return };
        flight.hosts.retain(|other| *other != host);
        if !flight.hosts.is_empty() {
            return;
        }
        let wanted = flight.wanted;
        self.flying.remove(id);
        match self.may_come(id) {
            true => self.todo.push_front(wanted),
            false => self.lose(*id),
        }
    }

    fn may_come(&self, id: &ChunkId) -> bool {
        (0..self.is_alive.len()).any(|host| self.is_alive[host] && !self.lacks(host, id))
    }

    fn lose(&mut self, id: ChunkId) {
        self.absent.remove(&id);
        self.missing.push(id);
    }

    /// Notes that `host` brings nothing more, not even what it is asked for: `unanswered`.
    fn ended(&mut self, host: usize, unanswered: &[ChunkId]) {
        self.is_alive[host] = false;
        unanswered.iter().for_each(|id| self.put_back(host, id));
        let (todo, lost): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.todo).into_iter().partition(|wanted| self.may_come(&wanted.id));
        self.todo = todo;
        lost.into_iter().for_each(|wanted| self.lose(wanted.id));
    }

    /// Says whether there is, or may be, something for `host` to do.
    fn may_need(&self, host: usize) -> bool {
        !self.is_over()
            && (self.is_open
                || self.flying.keys().any(|id| !self.lacks(host, id))
                || self.todo.iter().any(|wanted| !self.lacks(host, &wanted.id)))
    }

    fn left(mut self) -> Vec<ChunkId> {
        self.missing.extend(self.todo.iter().map(|wanted| wanted.id));
        self.missing.extend(self.flying.keys());
        self.missing
    }
}

/// What one host has to do, and how it does.
struct Host {
    number: usize,
    client: Client,
    /// How long the chunks that were asked for can be.
    lens: HashMap<ChunkId, usize>,
    window: Window,
    /// What is to be sent.
    outbox: VecDeque<u8>,
    is_ready: bool,
    /// When it was last asked something.
    asked: Instant,
}

impl Shared<'_> {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve_with(&self, number: usize, link: Link) -> Served {
        let mut served = Served { name: link.name.clone(), n_chunks: 0, n_bytes: 0, failure: None };
        let mut host = Host {
            number,
            client: Client::default(),
            lens: HashMap::new(),
            window: Window::default(),
            outbox: Client::greeting().into(),
            is_ready: false,
            asked: Instant::now(),
        };
        if let Err(error) = self.talk(&mut host, &link, &mut served) {
            served.failure = Some(with_words(error, &link.words));
        }
        let unanswered: Vec<ChunkId> = host.client.unanswered().collect();
        self.queue().ended(number, &unanswered);
        self.tell_lost();
        self.wake.notify_all();
        served
    }

    /// Tells who waits for it what no host brings.
    fn tell_lost(&self) {
        let Some(lost) = &self.lost else { return };
        let missing = std::mem::take(&mut self.queue().missing);
        missing.iter().for_each(lost);
    }

    /// Asks and listens until there is nothing left to ask this host for.
    fn talk(&self, host: &mut Host, link: &Link, served: &mut Served) -> Result<()> {
        set_nonblocking(&link.input)?;
        set_nonblocking(&link.output)?;
        let mut buffer = vec![0; READ];
        let (mut mark, mut bytes_at_mark) = (Instant::now(), 0);
        loop {
            if self.queue().is_over() {
                return Ok(());
            }
            self.ask(host);
            if host.client.n_open() == 0 && host.outbox.is_empty() && host.is_ready {
                let queue = self.queue();
                if !queue.may_need(host.number) {
                    return Ok(());
                }
                drop(self.wake.wait_timeout(queue, TICK).unwrap_or_else(PoisonError::into_inner));
                (mark, bytes_at_mark) = (Instant::now(), served.n_bytes);
                if host.asked.elapsed() > PING {
                    host.asked = Instant::now();
                    host.outbox.extend(host.client.ask(Want::Have, vec![ChunkId::from_bytes([0; 32])]));
                }
                continue;
            }
            send(&link.output, &mut host.outbox)?;
            if is_ready(link.input.as_fd(), PollFlags::IN, TICK)? {
                match rustix::io::read(&link.input, &mut buffer[..]) {
                    Ok(0) | Err(Errno::CONNRESET) => return Err(Error::new(Kind::Io, "it ended the connection")),
                    Ok(n) => {
                        served.n_bytes += n as u64;
                        host.client.receive(&buffer[..n]);
                        let begun = Instant::now();
                        self.take_all(host, served)?;
                        mark += begun.elapsed(); // that was our time
                    }
                    Err(Errno::AGAIN | Errno::INTR) => (),
                    Err(error) => return Err(error).context(|| "the connection failed"),
                }
            }
            if mark.elapsed() > STALL_TIME {
                let n_bytes = served.n_bytes - bytes_at_mark;
                if n_bytes < STALL_BYTES {
                    let what = format!("it sent {n_bytes} bytes within {} seconds", STALL_TIME.as_secs());
                    return Err(Error::new(Kind::Io, what));
                }
                (mark, bytes_at_mark) = (Instant::now(), served.n_bytes);
            }
        }
    }

    /// Notes requests to send, as many as keep the line busy.
    fn ask(&self, host: &mut Host) {
        while host.is_ready && host.client.n_open() < MAX_OPEN {
            let (now, room) = (Instant::now(), host.window.room());
            let taken = if room == 0 { Vec::new() } else { self.queue().take(host.number, room.min(MAX_GET), now) };
            if taken.is_empty() {
                return;
            }
            host.lens.extend(taken.iter().map(|wanted| (wanted.id, wanted.max_len)));
            host.outbox.extend(host.client.ask(Want::Get, taken.iter().map(|wanted| wanted.id).collect()));
            host.window.asked(taken.len(), now);
            host.asked = now;
        }
    }

    /// Takes all that came as a whole.
    fn take_all(&self, host: &mut Host, served: &mut Served) -> Result<()> {
        let mut plain = Vec::new();
        loop {
            let Some(event) = host.client.next_event()? else { return Ok(()) };
            if matches!(event, Event::Chunk(..) | Event::Absent(_)) {
                host.window.answered(Instant::now());
            }
            match event {
                Event::Ready => host.is_ready = true,
                Event::Chunk(id, record) => self.take(host, &id, &record, &mut plain, served)?,
                Event::Absent(id) => {
                    host.lens.remove(&id);
                    self.queue().is_absent(host.number, &id);
                    self.tell_lost();
                    self.wake.notify_all();
                }
                Event::Have(_) => (), // it answered a ping
                Event::Proof(_) | Event::Promises(_) => {
                    return Err(violation("an answer came to something that was not asked"));
                }
            }
        }
    }

    fn take(&self, host: &mut Host, id: &ChunkId, record: &[u8], plain: &mut Vec<u8>, served: &mut Served) -> Result<()> {
        let max_len = host.lens.remove(id).unwrap_or_default();
        let verified = Record::verify(record, id, max_len, plain);
        let record = match verified {
            Ok(record) => record,
            Err(error) => {
                self.queue().put_back(host.number, id);
                return Err(error.wrap(format!("it sent something else for chunk '{id}'")));
            }
        };
        if !self.queue().arrived(id) {
            return Ok(()); // another host was faster
        }
        if let Err(error) = (self.sink)(&record, plain) {
            self.queue().failure.get_or_insert(error);
        }
        served.n_chunks += 1;
        if self.queue().is_over() {
            self.wake.notify_all();
        }
        Ok(())
    }
}

/// Adds what the host said for people, if it did, to what it failed at.
fn with_words(error: Error, words: &Words) -> Error {
    // A line that lies says nothing of use.
    let said = if error.kind() == Kind::Io { words.last_line(LAST_WORDS) } else { None };
    match said {
        Some(said) => Error::new(error.kind(), format!("{error:#}; the other side says: {said}")),
        None => error,
    }
}

pub(super) fn set_nonblocking(stream: &OwnedFd) -> Result<()> {
    let flags = rustix::fs::fcntl_getfl(stream).context(|| "cannot use the connection")?;
    rustix::fs::fcntl_setfl(stream, flags | rustix::fs::OFlags::NONBLOCK).context(|| "cannot use the connection")
}

/// Sends as much as the host takes now.
pub(super) fn send(output: &OwnedFd, outbox: &mut VecDeque<u8>) -> Result<()> {
    while !outbox.is_empty() {
        match rustix::io::write(output, outbox.as_slices().0) {
            Ok(n) => drop(outbox.drain(..n)),
            Err(Errno::AGAIN) => return Ok(()),
            Err(Errno::INTR) => (),
            // It listens no more. What it sent before may still be on the way; the end of that tells.
            Err(Errno::PIPE | Errno::CONNRESET) => outbox.clear(),
            Err(error) => return Err(error).context(|| "the connection failed"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::remote::serve::{Served as Serving, serve};
    use crate::store::{Local, Store, WriteOptions};

    const N_CHUNKS: usize = 1500;
    const LEN: usize = 4000;

    fn content(at: usize) -> Vec<u8> {
        let mut bytes = vec![0; LEN];
        blake3::Hasher::new().update(&at.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    /// What is wrong with a host.
    #[derive(Clone, Copy, Debug)]
    enum Fault {
        None,
        /// It ends after so many bytes.
        Dies(usize),
        /// It says nothing more after so many bytes.
        Stalls(usize),
        /// It changes the byte at this place.
        Lies(usize),
        /// It sends so many bytes in a millisecond.
        Slow(usize),
    }

    struct World {
        dir: tempfile::TempDir,
        ids: Vec<ChunkId>,
    }

    impl World {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap(), ids: (0..N_CHUNKS).map(|at| ChunkId::of(&content(at))).collect() }
        }

        /// Makes a store with the chunks that `has` names.
        fn store(&self, name: &str, has: impl Fn(usize) -> bool) -> Store {
            let store = Store::create(&self.dir.path().join(name)).unwrap();
            let writer = store.writer(WriteOptions::default()).unwrap();
            for at in (0..N_CHUNKS).filter(|at| has(*at)) {
                writer.put(self.ids[at], &content(at)).unwrap();
            }
            writer.finish().unwrap();
            store
        }

        fn wanted(&self) -> Vec<Wanted> {
            self.ids.iter().map(|id| Wanted { id: *id, max_len: LEN }).collect()
        }

        /// Fetches everything from `hosts`; returns what came of it, and how many bytes arrived.
        fn fetch(&self, hosts: &[(&Store, Fault)]) -> (Fetched, u64) {
            let links = hosts.iter().enumerate().map(|(at, (store, fault))| link(&format!("h{at}"), store, *fault)).collect();
            let arrived = AtomicU64::new(0);
            let sink = |_: &Record<'_>, plain: &[u8]| {
                arrived.fetch_add(plain.len() as u64, Ordering::Relaxed);
                Ok(())
            };
            let fetched = fetch(links, self.wanted(), &sink, &Progress::default()).unwrap();
            (fetched, arrived.into_inner())
        }
    }

    /// Starts a server on `store` and returns the line to it, with a fault in it.
    fn link(name: &str, store: &Store, fault: Fault) -> Link {
        let (ours, mut outer) = UnixStream::pair().unwrap();
        let (mut inner, theirs) = UnixStream::pair().unwrap();
        let local = Local::of(store.clone());
        std::thread::spawn(move || drop(serve(&Serving::new(&local, &|| 0), theirs.as_fd(), theirs.as_fd())));
        let (mut to, mut from) = (inner.try_clone().unwrap(), outer.try_clone().unwrap());
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(std::net::Shutdown::Write);
        });
        std::thread::spawn(move || {
            let (mut buffer, mut n_passed) = ([0; 4096], 0);
            while let Ok(n @ 1..) = inner.read(&mut buffer) {
                match fault {
                    Fault::None => (),
                    Fault::Dies(after) if n_passed + n > after => {
                        let _ = outer.shutdown(std::net::Shutdown::Both);
                        return;
                    }
                    Fault::Stalls(after) if n_passed + n > after => std::thread::sleep(Duration::from_secs(3600)),
                    Fault::Lies(at) if (n_passed..n_passed + n).contains(&at) => buffer[at - n_passed] ^= 1,
                    Fault::Slow(rate) => std::thread::sleep(Duration::from_millis((n / rate) as u64)),
                    _ => (),
                }
                n_passed += n;
                if outer.write_all(&buffer[..n]).is_err() {
                    return;
                }
            }
            let _ = outer.shutdown(std::net::Shutdown::Both);
        });
        let output = OwnedFd::from(ours.try_clone().unwrap());
        Link { name: name.into(), input: ours.into(), output, words: Words::default(), keeper: Box::new(()) }
    }

    const ALL: u64 = (N_CHUNKS * LEN) as u64;

    #[test]
    fn each_host_brings_what_it_has_and_what_nobody_has_is_missing() {
        let world = World::new();
        let thirds: Vec<Store> = (0..3).map(|third| world.store(&third.to_string(), |at| at % 3 == third && at != 7)).collect();
        let hosts: Vec<_> = thirds.iter().map(|store| (store, Fault::None)).collect();
        let (fetched, arrived) = world.fetch(&hosts);
        assert_eq!((fetched.missing, arrived), (vec![world.ids[7]], ALL - LEN as u64));
        for host in fetched.hosts {
            assert!(host.failure.is_none() && host.n_chunks >= N_CHUNKS as u64 / 3 - 1, "{host:?}");
        }
        let (fetched, arrived) = world.fetch(&[]);
        assert_eq!((fetched.missing.len(), arrived), (N_CHUNKS, 0));
    }

    #[test]
    fn a_host_that_fails_is_named_and_the_others_bring_what_it_owes() {
        let world = World::new();
        let store = world.store("all", |_| true);
        let faults = [
            (Fault::Dies(0), "ended the connection"),
            (Fault::Dies(300_000), "ended the connection"),
            (Fault::Lies(4), "unknown frame of kind 128"),
            (Fault::Lies(200_000), "something else for chunk"),
        ];
        for (fault, told) in faults {
            let (fetched, arrived) = world.fetch(&[(&store, Fault::Slow(4000)), (&store, fault)]);
            assert_eq!((fetched.missing.len(), arrived), (0, ALL), "{fault:?}");
            let failure = format!("{:#}", fetched.hosts[1].failure.as_ref().unwrap());
            assert!(failure.contains(told), "{fault:?}: {failure}");
            assert!(fetched.hosts[0].failure.is_none());
        }
        let (fetched, arrived) = world.fetch(&[(&store, Fault::Dies(300_000))]);
        assert_eq!(fetched.missing.len() as u64 * LEN as u64 + arrived, ALL, "what came before counts");
        assert!(arrived > 200_000);
    }

    #[test]
    fn nobody_waits_for_a_host_that_stalls() {
        let world = World::new();
        let store = world.store("all", |_| true);
        let started = Instant::now();
        let (fetched, arrived) = world.fetch(&[(&store, Fault::None), (&store, Fault::Stalls(100_000))]);
        assert_eq!((fetched.missing.len(), arrived), (0, ALL));
        assert!(started.elapsed() < STALL_TIME, "it was asked for once more: {:?}", started.elapsed());
        // Alone it is given up.
        let (fetched, arrived) = world.fetch(&[(&store, Fault::Stalls(100_000))]);
        assert_eq!(fetched.missing.len() as u64 * LEN as u64 + arrived, ALL);
        assert!(fetched.hosts[0].failure.as_ref().unwrap().to_string().contains("within 10 seconds"));
    }

    #[test]
    fn a_faster_host_brings_more_and_each_chunk_is_taken_once() {
        let world = World::new();
        let store = world.store("all", |_| true);
        let (fetched, arrived) = world.fetch(&[(&store, Fault::Slow(4000)), (&store, Fault::Slow(200))]);
        assert_eq!((fetched.missing.len(), arrived), (0, ALL));
        let n = fetched.hosts.iter().map(|host| host.n_chunks).collect::<Vec<_>>();
        assert!(n[0] > 2 * n[1] && n[1] > 0 && n[0] + n[1] == N_CHUNKS as u64, "{n:?}");
    }

    #[test]
    fn a_chunk_that_cannot_be_kept_ends_it_all() {
        let world = World::new();
        let store = world.store("all", |_| true);
        let links = vec![link("a", &store, Fault::None), link("b", &store, Fault::None)];
        let full = |_: &Record<'_>, _: &[u8]| Err(Error::new(Kind::NoSpace, "the disk is full"));
        let error = fetch(links, world.wanted(), &full, &Progress::default()).unwrap_err();
        assert_eq!(error.kind(), Kind::NoSpace);
    }

    /// Wants all chunks of `world`, one after the other; returns how many came and how many did not.
    fn want_all(world: &World, fetcher: &Fetcher) -> (usize, usize) {
        let (give, take) = std::sync::mpsc::channel();
        for (at, id) in world.ids.iter().enumerate() {
            let give = give.clone();
            let then = move |plain: Option<&[u8]>| {
                assert!(plain.is_none_or(|plain| plain == content(at)));
                give.send(plain.is_some()).unwrap();
            };
            fetcher.want(Wanted { id: *id, max_len: LEN }, Box::new(then));
        }
        let came: Vec<bool> = (0..N_CHUNKS).map(|_| take.recv_timeout(Duration::from_secs(60)).unwrap()).collect();
        (came.iter().filter(|came| **came).count(), came.iter().filter(|came| !**came).count())
    }

    #[test]
    fn who_stays_connected_gets_what_is_wanted_later_and_is_told_what_nobody_has() {
        let world = World::new();
        let stores = [world.store("even", |at| at % 2 == 0), world.store("odd", |at| at % 2 == 1 && at != 7)];
        let kept = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&kept);
        let links = stores.iter().map(|store| link("h", store, Fault::None)).collect();
        let fetcher = Fetcher::start(links, move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        for round in 1..=2 {
            assert_eq!(want_all(&world, &fetcher), (N_CHUNKS - 1, 1), "round {round}");
            assert_eq!(kept.load(Ordering::Relaxed), round * (N_CHUNKS as u64 - 1));
            assert!(fetcher.shared.queue().absent.is_empty(), "memory does not grow with what was wanted");
        }
        // The same chunk wanted twice at once comes to both.
        let (give, take) = std::sync::mpsc::channel();
        for _ in 0..2 {
            let give = give.clone();
            fetcher.want(Wanted { id: world.ids[0], max_len: LEN }, Box::new(move |plain| give.send(plain.is_some()).unwrap()));
        }
        assert!(take.recv().unwrap() && take.recv().unwrap());
        assert!(fetcher.finish().iter().all(|host| host.failure.is_none() && host.n_chunks >= N_CHUNKS as u64 - 2));
        assert_eq!(want_all(&world, &fetcher), (0, N_CHUNKS), "nobody is asked any more");
    }

    #[test]
    fn who_waits_is_told_when_the_last_host_that_could_bring_it_fails() {
        let world = World::new();
        let (all, few) = (world.store("all", |_| true), world.store("few", |at| at < 100));
        for fault in [Fault::Dies(0), Fault::Dies(300_000), Fault::Lies(200_000), Fault::Stalls(100_000)] {
            let fetcher = Fetcher::start(vec![link("a", &all, fault), link("b", &few, Fault::None)], |_| ());
            let (came, lost) = want_all(&world, &fetcher);
            assert!((100..N_CHUNKS).contains(&came) && came + lost == N_CHUNKS, "{fault:?}: {came} {lost}");
            let hosts = fetcher.finish();
            assert!(hosts[0].failure.is_some() && hosts[1].failure.is_none(), "{fault:?}: {hosts:?}");
        }
        assert_eq!(want_all(&world, &Fetcher::start(Vec::new(), |_| ())), (0, N_CHUNKS));
    }
}
