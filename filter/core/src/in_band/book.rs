//! The newest load of each endpoint of a pool, as one worker has heard of it.

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use headgate_protos::v1;

use super::EngineLoad;
use crate::time::Timestamp;

/// Endpoints that are remembered; of more, those heard of last.
const MAX_ENDPOINTS: usize = 64;
/// Longest address of an endpoint: `[…]:PORT` of an IPv6 address with its zone.
const MAX_ADDRESS_BYTES: usize = 64;
/// Time for which a load is reported: longer than the control plane believes it, so that none is lost on the way.
const REPORTED_FOR: Duration = Duration::from_secs(2);

/// Loads of the endpoints of one pool.
#[derive(Debug, Default)]
pub(crate) struct EndpointLoads {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    endpoint: String,
    /// When the newest report, readable or not, came.
    heard_at: Timestamp,
    made_after: Timestamp,
    load: EngineLoad,
    epoch: u64,
    unreadable: u64,
}

impl EndpointLoads {
    /// Takes a report of `endpoint` that was made after `made_after`; `None`: it could not be read. One that was made before the newest
    /// known changes nothing, and an endpoint that is no address is passed over.
    pub(crate) fn note(&mut self, now: Timestamp, endpoint: &[u8], made_after: Timestamp, load: Option<EngineLoad>) {
        let Some(entry) = self.entry(now, endpoint) else { return };
        entry.heard_at = now;
        match load {
            None => entry.unreadable += 1,
            Some(load) if entry.epoch == 0 || made_after >= entry.made_after => {
                entry.epoch += 1;
                (entry.made_after, entry.load) = (made_after, load);
            }
            Some(_) => {}
        }
    }

    fn entry(&mut self, now: Timestamp, endpoint: &[u8]) -> Option<&mut Entry> {
        if let Some(known) = self.entries.iter().position(|entry| entry.endpoint.as_bytes() == endpoint) {
            return self.entries.get_mut(known);
        }
        let endpoint = core::str::from_utf8(endpoint).ok().filter(|address| (1..=MAX_ADDRESS_BYTES).contains(&address.len()))?;
        if self.entries.len() >= MAX_ENDPOINTS {
            let oldest = self.entries.iter().enumerate().min_by_key(|(_, entry)| entry.heard_at)?;
            self.entries.swap_remove(oldest.0);
        }
        let (endpoint, load) = (String::from(endpoint), EngineLoad::default());
        self.entries.push(Entry { endpoint, heard_at: now, made_after: Timestamp::ZERO, load, epoch: 0, unreadable: 0 });
        self.entries.last_mut()
    }

    /// What is new enough to be reported.
    pub(crate) fn report(&self, now: Timestamp) -> Vec<v1::EndpointLoad> {
        self.entries.iter().filter(|entry| now.since(entry.heard_at) <= REPORTED_FOR).map(Entry::to_wire).collect()
    }
}

impl Entry {
    fn to_wire(&self) -> v1::EndpointLoad {
        let EngineLoad { kv_use, waiting, running, kv_total_tokens } = self.load;
        v1::EndpointLoad {
            endpoint: self.endpoint.clone(),
            epoch: self.epoch,
            unreadable: self.unreadable,
            made_after_ns: self.made_after.as_nanos(),
            kv_cache_use: kv_use,
            waiting,
            running,
            kv_total_tokens,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    fn ms(ms: u64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    fn waiting(count: u64) -> Option<EngineLoad> {
        Some(EngineLoad { waiting: Some(count), ..EngineLoad::default() })
    }

    #[test]
    fn a_report_that_was_made_earlier_changes_nothing_however_late_it_comes() {
        let mut loads = EndpointLoads::default();
        loads.note(ms(100), b"10.0.0.1:80", ms(90), waiting(5));
        loads.note(ms(110), b"10.0.0.1:80", ms(80), waiting(9));
        loads.note(ms(120), b"10.0.0.1:80", ms(95), None);
        let report = loads.report(ms(120));
        let [load] = report.as_slice() else { panic!("{report:?}") };
        assert_eq!((load.waiting, load.epoch, load.unreadable, load.made_after_ns), (Some(5), 1, 1, 90_000_000));
    }

    #[test]
    fn what_nobody_heard_of_lately_is_not_reported() {
        let mut loads = EndpointLoads::default();
        loads.note(ms(100), b"10.0.0.1:80", ms(100), waiting(5));
        assert_eq!(loads.report(ms(2100)).len(), 1);
        assert!(loads.report(ms(2101)).is_empty());
    }

    #[test]
    fn endpoints_are_bounded_and_the_one_heard_of_longest_ago_makes_room() {
        let mut loads = EndpointLoads::default();
        for number in 0..100_u64 {
            loads.note(ms(number), format!("10.0.0.{number}:80").as_bytes(), ms(number), waiting(number));
        }
        let report = loads.report(ms(100));
        assert_eq!(report.len(), MAX_ENDPOINTS);
        assert!(report.iter().all(|load| load.waiting >= Some(36)));
        for endpoint in [&b""[..], b"\xff", &[b'1'; 65]] {
            loads.note(ms(200), endpoint, ms(200), waiting(1));
        }
        assert!(loads.report(ms(2199)).is_empty(), "what is no address is nobody's");
    }
}
