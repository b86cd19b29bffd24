//! Work that several processors share.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};

use crate::error::Result;

/// Starts a thread of `scope`, if the system has one more.
pub fn start<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> std::io::Result<ScopedJoinHandle<'scope, T>> {
    #[cfg(test)]
    if tests::HAS_NONE.get() {
        return Err(std::io::ErrorKind::WouldBlock.into());
    }
    std::thread::Builder::new().spawn_scoped(scope, work)
}

/// Calls `work` in `n_threads` threads, or in as many as can be started: this one works in any case.
pub fn in_all(n_threads: usize, work: &(dyn Fn() + Sync)) {
    std::thread::scope(|scope| {
        (1..n_threads).map_while(|_| start(scope, work).ok()).for_each(drop);
        work();
    });
}

/// Does `work` with each of `items`, by as many threads as there are processors, but at most `most`, each with something of its own that `begin` makes.
///
/// After an error no more of them are begun, and the first is returned.
pub fn each<T: Sync, O>(
    most: usize,
    items: &[T],
    begin: impl Fn() -> Result<O> + Sync,
    work: impl Fn(&T, &mut O) -> Result<()> + Sync,
) -> Result<()> {
    let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
    let take = || -> Result<()> {
        let mut own = begin()?;
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(item, &mut own)?;
        }
        Ok(())
    };
    in_all(most.min(n_processors()), &|| {
        if let Err(error) = take() {
            next.store(items.len(), Ordering::Relaxed);
            failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

/// Does two things at the same time, or, where no thread can be started, `here` first.
pub fn both<A: Send, B>(beside: impl FnOnce() -> A + Send, here: impl FnOnce() -> B) -> (A, B) {
    let beside = Mutex::new(Some(beside));
    let begin = || {
        let beside = beside.lock().unwrap_or_else(PoisonError::into_inner).take();
        beside.expect("BUG: it is done once")()
    };
    std::thread::scope(|scope| {
        let thread = start(scope, begin);
        let here = here();
        let beside = match thread {
            Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            Err(_) => begin(),
        };
        (beside, here)
    })
}

/// Returns how many processors this process may use; 1 if the kernel does not tell.
pub fn n_processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    use super::*;
    use crate::error::{Error, Kind};

    thread_local! {
        /// Whether this thread can start no others.
        pub(crate) static HAS_NONE: Cell<bool> = const { Cell::new(false) };
    }

    #[test]
    fn each_item_is_done_once_and_the_first_error_ends_it() {
        for most in [0, 1, 2, 5] {
            let done: Vec<AtomicUsize> = (0..1000).map(|_| AtomicUsize::new(0)).collect();
            let begun = AtomicUsize::new(0);
            let begin = || Ok(begun.fetch_add(1, Ordering::Relaxed));
            let count = |item: &AtomicUsize| item.fetch_add(1, Ordering::Relaxed);
            each(most, &done, begin, |item, _| Ok(_ = count(item))).unwrap();
            assert!(done.iter().all(|item| item.load(Ordering::Relaxed) == 1));
            assert!((1..=most.max(1)).contains(&begun.into_inner()));
        }
        let numbers: Vec<usize> = (0..100_000).collect();
        let (n_done, has_failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let work = |number: &usize, _: &mut ()| {
            n_done.fetch_add(1, Ordering::Relaxed);
            if *number == 7 {
                has_failed.store(true, Ordering::Relaxed);
                return Err(Error::new(Kind::Io, "seven"));
            }
            // The other thread has time to say so.
            std::thread::sleep(Duration::from_millis(u64::from(has_failed.load(Ordering::Relaxed))));
            Ok(())
        };
        assert_eq!(each(2, &numbers, || Ok(()), work).unwrap_err().to_string(), "seven");
        assert!(n_done.load(Ordering::Relaxed) < numbers.len());
        let failed = each(2, &numbers, || Err::<(), _>(Error::new(Kind::Io, "no memory")), work);
        assert_eq!(failed.unwrap_err().to_string(), "no memory");
    }

    #[test]
    fn two_things_are_done_at_the_same_time_or_one_after_the_other() {
        let (began, ended) = std::sync::mpsc::channel();
        let beside = || began.send("beside").map(|()| 1);
        // It waits for the other, which is done in another thread.
        assert_eq!(both(beside, || ended.recv().unwrap()), (Ok(1), "beside"));
        HAS_NONE.set(true);
        let done = Mutex::new(Vec::new());
        let note = |what| done.lock().unwrap().push(what);
        both(|| note("beside"), || note("here"));
        in_all(4, &|| note("all"));
        let note_it = |item: &&'static str, (): &mut ()| {
            note(item);
            Ok(())
        };
        each(4, &["item"], || Ok(()), note_it).unwrap();
        assert_eq!(*done.lock().unwrap(), ["here", "beside", "all", "item"]);
        HAS_NONE.set(false);
    }
}
