//! The quotas of one policy in one worker: what it may use of the proxy's leases, and what it has used.

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use headgate_protos::v1;

use super::Pool;
use crate::admission::Newcomer;
use crate::budget::Size;
use crate::classify::{BYTES_PER_TOKEN, Classified};
use crate::in_band::{Tally, Yields};
use crate::policy::{Policy, QuotaConfig, QuotaUnit};
use crate::quota::{Allowance, CLASSES, Grant, Held, PartDemand, PerClass, Purse, TTL};
use crate::reason::{Cause, Reason, Source};
use crate::time::Timestamp;

/// Time for which the worker's part of the leases holds. It is refreshed every 100 ms; others take the place of a worker that has not been
/// heard for a second ([`SLOT_TIMEOUT`](crate::lease::SLOT_TIMEOUT)), and no report waits for it.
const PART_LAPSE: Duration = Duration::from_millis(500);

/// What an admitted request has been charged, to be settled or given back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Charges {
    /// Which list of quotas the positions are of.
    list: u8,
    class: u8,
    /// Bits of the quotas.
    quotas: u16,
}

/// The charges of a request that has just come, and the size for which it was charged.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Charged {
    pub(crate) charges: Charges,
    pub(crate) size: Size,
    /// What is done with the pieces of its response so that it can be settled; `None`: nothing, or overload control does it.
    pub(crate) settles: Option<Pieces>,
}

/// What is done with the pieces of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pieces {
    /// They are counted.
    AreCounted,
    /// Their ends are read as well, for `usage`.
    AreRead,
}

/// A quota that has not enough left.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Lack {
    pub(crate) cause: Cause,
    /// Requests like this one that the worker's part serves per second; 0: it has no part.
    pub(crate) drain_rps: f64,
}

/// All quotas of a policy.
#[derive(Debug, Default)]
pub(crate) struct QuotaBook {
    holder: u64,
    /// Number of the list: charges of another one are settled with nobody.
    list: u8,
    accounts: Vec<Account>,
    /// What is learned of responses where no overload control learns it.
    yields: Yields,
}

#[derive(Debug)]
struct Account {
    key: String,
    held: Held,
    /// This worker's part of the proxy's lease.
    part: f64,
    /// When it was told; [`Timestamp::ZERO`]: never.
    parted_at: Timestamp,
    purse: Purse,
    demand: PartDemand,
    asked: PerClass,
    requests: [u64; CLASSES],
    used: f64,
    refused: u64,
}

// === impl Charges ===

impl Charges {
    const fn has(self, index: usize) -> bool {
        self.quotas & (1 << index) != 0
    }
}

// === impl QuotaBook ===

impl QuotaBook {
    /// Follows the policy: a quota of the same name and unit goes on.
    pub(crate) fn set_policy(&mut self, now: Timestamp, policy: &Policy) {
        let keys = || policy.quotas().iter().map(|config| config.key.as_str());
        if self.accounts.iter().map(|account| account.key.as_str()).eq(keys()) {
            return;
        }
        self.list = self.list.wrapping_add(1);
        let mut before = core::mem::take(&mut self.accounts);
        for key in keys() {
            let known = before.iter().position(|account| account.key == key);
            let account = known.map(|at| before.swap_remove(at)).unwrap_or_else(|| Account::new(now, key, self.holder));
            self.accounts.push(account);
        }
    }

    /// Says which process this is; another one begins with nothing.
    pub(crate) fn set_holder(&mut self, now: Timestamp, holder: u64) {
        if self.holder != holder {
            self.holder = holder;
            for account in &mut self.accounts {
                *account = Account::new(now, &account.key, holder);
            }
        }
    }

    /// Gives the worker its part of the lease of one quota, 0 to 1, until it lapses.
    pub(crate) fn set_part(&mut self, now: Timestamp, policy: &Policy, index: usize, part: f64) {
        if let (Some(account), Some(config)) = (self.accounts.get_mut(index), policy.quotas().get(index)) {
            account.settle(now, config);
            (account.part, account.parted_at) = (part.clamp(0.0, 1.0), now);
            account.settle(now, config);
        }
    }

    /// What this worker asks of each quota, in its unit per second, by which the leases are divided.
    pub(crate) fn wanted(&self) -> impl Iterator<Item = f64> {
        self.accounts.iter().map(|account| account.demand.rate())
    }

    /// Time passes for the demand.
    pub(crate) fn on_tick(&mut self, now: Timestamp) {
        for account in &mut self.accounts {
            account.demand.roll(now, account.asked.iter().sum());
        }
    }

    /// Takes the proxy's grants.
    pub(crate) fn accept(&mut self, now: Timestamp, policy: &Policy, grants: &[v1::QuotaGrant]) {
        if grants.is_empty() {
            return;
        }
        self.settle_all(now, policy);
        for grant in grants {
            if let Some(account) = self.accounts.iter_mut().find(|account| account.key == grant.quota) {
                account.held.accept(now, &Grant::from_wire(grant));
            }
        }
        self.settle_all(now, policy);
    }

    fn settle_all(&mut self, now: Timestamp, policy: &Policy) {
        for (account, config) in self.accounts.iter_mut().zip(policy.quotas()) {
            account.settle(now, config);
        }
    }

    /// Charges a request to all quotas that it falls under, or to none of them.
    pub(crate) fn charge(&mut self, now: Timestamp, policy: &Policy, classified: Classified, size: Size) -> Result<Charges, Lack> {
        let (class, weight) = (classified.class.index(), output_weight(policy));
        let mut charges = Charges { list: self.list, class: class as u8, quotas: 0 };
        let mut lack = None;
        for (index, (account, config)) in self.accounts.iter_mut().zip(policy.quotas()).enumerate() {
            if !config.covers(classified.tenant) {
                continue;
            }
            let cost = config.cost(size, weight);
            let allowance = account.settle(now, config);
            account.note(class, cost);
            charges.quotas |= 1 << index;
            if lack.is_none() && !account.purse.covers(class, cost, &allowance) {
                account.refused += 1;
                lack = Some(account.lack(now, class, cost, &allowance.rates));
            }
        }
        if let Some(lack) = lack {
            return Err(lack);
        }
        for (account, config) in charged(&mut self.accounts, policy, charges) {
            let cost = config.cost(size, weight);
            account.purse.take(class, cost);
            account.used += cost;
        }
        Ok(charges)
    }

    /// Settles a request that is over: what it really was, in place of what was expected. A request that was more than expected leaves a
    /// debt, which is paid before anything else passes.
    pub(crate) fn settle(&mut self, policy: &Policy, charges: Charges, expected: Size, size: Size) {
        self.correct(policy, charges, |config, weight| config.cost(expected, weight) - config.cost(size, weight));
    }

    fn correct(&mut self, policy: &Policy, charges: Charges, excess: impl Fn(&QuotaConfig, f64) -> f64) {
        if charges.list != self.list {
            return;
        }
        let weight = output_weight(policy);
        for (account, config) in charged(&mut self.accounts, policy, charges) {
            let excess = excess(config, weight);
            account.purse.put_back(usize::from(charges.class), excess);
            account.used -= excess;
        }
    }

    /// Cumulative state on the wire.
    pub(crate) fn report(&self, now: Timestamp, policy: &Policy) -> Vec<v1::QuotaReport> {
        let accounts = self.accounts.iter().zip(policy.quotas());
        accounts.map(|(account, config)| account.report(now, self.holder, config)).collect()
    }
}

impl Pool {
    /// Charges a request to the quotas that it falls under.
    #[inline]
    pub(crate) fn charge(&mut self, now: Timestamp, newcomer: &Newcomer<'_>) -> Result<Charged, Lack> {
        if self.policy.quotas().is_empty() { Ok(Charged::default()) } else { self.charge_quotas(now, newcomer) }
    }

    #[inline(never)]
    fn charge_quotas(&mut self, now: Timestamp, newcomer: &Newcomer<'_>) -> Result<Charged, Lack> {
        let classified = newcomer.classified;
        let size = match (&self.overload, self.policy.overload()) {
            (Some(load), Some(config)) => {
                load.estimates.size(classified.class.index(), newcomer.request.content_length, load.presumed(config))
            }
            _ => classified.size(),
        };
        let charges = self.quotas.charge(now, &self.policy, classified, size)?;
        let counts_tokens = |(index, config): (usize, &QuotaConfig)| charges.has(index) && config.unit != QuotaUnit::Requests;
        let settles = self.overload.is_none() && self.policy.quotas().iter().enumerate().any(counts_tokens);
        let settles = settles.then(|| if self.quotas.yields.looks_at_next() { Pieces::AreRead } else { Pieces::AreCounted });
        Ok(Charged { charges, size, settles })
    }

    /// Settles a request that no overload control settles, by what was counted of its response.
    #[inline(never)]
    pub(crate) fn settle(&mut self, charged: Charged, tally: &Tally, is_whole: bool) {
        let Charged { charges, size, .. } = charged;
        let (usage, counted) = (tally.usage(), tally.counted(&self.quotas.yields));
        let output = tally.output_tokens(&self.quotas.yields, BYTES_PER_TOKEN as f64);
        let prompt = usage.prompt.unwrap_or(size.prompt);
        self.quotas.settle(&self.policy, charges, size, Size { prompt, output });
        if let Some(tokens) = usage.output.filter(|_| is_whole) {
            self.quotas.yields.learn(counted, tokens);
        }
    }

    /// Gives back what a request of this size was charged that did not run.
    pub(crate) fn refund(&mut self, charges: Charges, size: Size) {
        self.quotas.correct(&self.policy, charges, |config, weight| config.cost(size, weight));
    }
}

fn charged<'a>(
    accounts: &'a mut [Account],
    policy: &'a Policy,
    charges: Charges,
) -> impl Iterator<Item = (&'a mut Account, &'a QuotaConfig)> {
    let all = accounts.iter_mut().zip(policy.quotas()).enumerate();
    all.filter(move |(index, _)| charges.has(*index)).map(|(_, pair)| pair)
}

fn output_weight(policy: &Policy) -> f64 {
    policy.overload().map_or(1.0, |config| config.output_weight)
}

// === impl Account ===

impl Account {
    fn new(now: Timestamp, key: &str, holder: u64) -> Self {
        Self {
            key: String::from(key),
            held: Held::new(holder),
            part: 0.0,
            parted_at: Timestamp::ZERO,
            purse: Purse::new(now),
            demand: PartDemand::default(),
            asked: [0.0; CLASSES],
            requests: [0; CLASSES],
            used: 0.0,
            refused: 0,
        }
    }

    /// Fills the purse up to `now`; returns what is in force of the lease for this worker.
    fn settle(&mut self, now: Timestamp, config: &QuotaConfig) -> Allowance {
        let part = if now.since(self.parted_at) <= PART_LAPSE { self.part } else { 0.0 };
        let allowance = self.held.allowance(now, config.terms.burst_s).part(part);
        self.purse.settle(now, &allowance);
        allowance
    }

    fn note(&mut self, class: usize, cost: f64) {
        self.asked.get_mut(class).into_iter().for_each(|asked| *asked += cost);
        self.requests.get_mut(class).into_iter().for_each(|requests| *requests += 1);
    }

    fn lack(&self, now: Timestamp, class: usize, cost: f64, rates: &PerClass) -> Lack {
        let rate = rates.get(class).copied().unwrap_or(0.0);
        let source = if self.held.age(now) <= TTL { Source::ControlPlane } else { Source::Decaying };
        let threshold = self.purse.saved(class).max(0.0);
        Lack { cause: Cause { reason: Reason::Quota, value: cost, threshold, term: None, source }, drain_rps: rate / cost }
    }

    fn report(&self, now: Timestamp, holder: u64, config: &QuotaConfig) -> v1::QuotaReport {
        let mark = self.held.mark();
        // Who has never had a part counts nothing: by that the control plane tells it from who uses what it holds.
        let is_idle = self.parted_at == Timestamp::ZERO;
        v1::QuotaReport {
            quota: self.key.clone(),
            holder,
            fence: mark.fence,
            sequence: mark.sequence,
            lease: Some(self.held.lease(now, config.terms.burst_s).to_wire()),
            asked: if is_idle { Vec::new() } else { self.asked.to_vec() },
            requests: if is_idle { Vec::new() } else { self.requests.to_vec() },
            used: self.used,
            refused: self.refused,
            saved: self.purse.total(),
        }
    }
}
