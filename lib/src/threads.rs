//! Work that several processors share.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::Result;

/// Calls `work` in `n_threads` threads, or in as many as can be started: this one works in any case.
pub fn in_all(n_threads: usize, work: &(dyn Fn() + Sync)) {
    std::thread::scope(|scope| {
        let start = || std::thread::Builder::new().spawn_scoped(scope, work);
        (1..n_threads).map_while(|_| start().ok()).for_each(drop);
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
        let thread = std::thread::Builder::new().spawn_scoped(scope, begin);
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
mod tests {
    use super::*;
    use crate::error::{Error, Kind};

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
        let n_done = AtomicUsize::new(0);
        let work = |number: &usize, _: &mut ()| {
            n_done.fetch_add(1, Ordering::Relaxed);
            if *number == 7 { Err(Error::new(Kind::Io, "seven")) } else { Ok(()) }
        };
        assert_eq!(each(2, &numbers, || Ok(()), work).unwrap_err().to_string(), "seven");
        assert!(n_done.load(Ordering::Relaxed) < numbers.len());
        let failed = each(2, &numbers, || Err::<(), _>(Error::new(Kind::Io, "no memory")), work);
        assert_eq!(failed.unwrap_err().to_string(), "no memory");
    }
}
