//! Workers that share a grant through one record, which may be damaged and whose writers may lose the race or die.

use headgate_core::lease::{Grant, Holding, SLOT_TIMEOUT, Want};
use headgate_core::shared::refresh_lease;
use headgate_core::time::Timestamp;

use crate::{Marks, Source};

/// Steps of one story at most.
const MAX_STEPS: usize = 300;
const WORKERS: usize = 5;

/// One worker: what it read and not yet wrote, and what it believes to hold.
#[derive(Clone, Default)]
struct Member {
    read: Option<(Vec<u8>, u64)>,
    permits: u32,
    share: f64,
    heard: Option<Timestamp>,
}

struct Proxy {
    bytes: Vec<u8>,
    cas: u64,
    now: Timestamp,
    members: Vec<Member>,
    total: u32,
    /// The largest total that anybody may still act on.
    bound: u32,
    was_damaged: bool,
}

pub(super) fn run(input: &[u8]) -> u64 {
    Marks::of(input, story)
}

fn story(input: &[u8], marks: &mut Marks) {
    let mut source = Source::new(input);
    let total = source.number32() % 200;
    let mut proxy = Proxy {
        bytes: Vec::new(),
        cas: 1,
        now: Timestamp::from_millis(10),
        members: vec![Member::default(); WORKERS],
        total,
        bound: total,
        was_damaged: false,
    };
    for _ in 0..MAX_STEPS {
        if source.is_empty() {
            break;
        }
        proxy.step(&mut source, marks);
        proxy.check();
    }
}

impl Proxy {
    fn step(&mut self, source: &mut Source<'_>, marks: &mut Marks) {
        let who = source.below(WORKERS);
        match source.below(16) {
            0 => self.now = self.now + source.span() / 4,
            1 => {
                self.total = source.number32() % 200;
                self.bound = self.bound.max(self.total);
            }
            2 if !self.bytes.is_empty() => {
                let at = source.below(self.bytes.len());
                self.bytes[at] ^= 1 + source.byte() % 255;
                self.cas += 1;
                self.was_damaged = true;
                marks.note("damaged");
            }
            // It dies; another VM with a new identity takes its thread over later.
            3 => self.members[who] = Member::default(),
            4..=6 => self.members[who].read = Some((self.bytes.clone(), self.cas)),
            7..=9 => {
                self.members[who].read.get_or_insert_with(|| (self.bytes.clone(), self.cas));
                self.write(who, source, marks);
            }
            _ => self.write(who, source, marks),
        }
    }

    /// Refreshes the place of a worker from what it read; the write counts only when nobody was faster.
    fn write(&mut self, who: usize, source: &mut Source<'_>, marks: &mut Marks) {
        let Some((bytes, cas)) = self.members[who].read.take() else { return };
        // Who has slept for so long counts as dead: its requests are over when it wakes.
        if self.members[who].heard.is_some_and(|at| self.now.since(at) > SLOT_TIMEOUT) {
            self.members[who] = Member::default();
        }
        let member = &self.members[who];
        let in_use = source.number32().min(member.permits);
        let want = Want { permits_in_use: in_use, permits_wanted: source.number32() % 300, rate_wanted: source.float() };
        let grant = Grant { permits_total: Some(self.total) };
        let refreshed = refresh_lease(&bytes, self.now, who as u64 + 1, want, grant);
        if cas != self.cas {
            return marks.note("lost the race");
        }
        let Some((next, (_, Holding { permits, rate_share, .. }))) = refreshed else { return marks.note("no slot") };
        self.bytes = next;
        self.cas += 1;
        let permits = permits.expect("the grant bounds permits");
        marks.note(("permits", permits.checked_ilog2(), permits >= self.total));
        let heard = Some(self.now);
        self.members[who] = Member { read: None, permits, share: rate_share, heard };
    }

    fn check(&self) {
        let lives = |member: &&Member| member.heard.is_some_and(|at| self.now.since(at) <= SLOT_TIMEOUT);
        let live: Vec<&Member> = self.members.iter().filter(lives).collect();
        let permits: u64 = live.iter().map(|member| u64::from(member.permits)).sum();
        assert!(permits <= u64::from(self.bound), "{permits} permits are believed to be held of {}", self.bound);
        assert!(live.iter().all(|member| (0.0..=1.0).contains(&member.share)));
        let share: f64 = live.iter().map(|member| member.share).sum();
        // A damaged record forgets shares: they are of rates, and come right within a tick of every worker.
        assert!(self.was_damaged || share <= 1.0 + 1e-9, "{share} of the rates are believed to be held");
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    super::random_seeds(600)
}
