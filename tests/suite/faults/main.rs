//! Faults of the signals, on a real Envoy under steady traffic: each ends in the state that the design names, within three periods of
//! the signal that it hits, costs no request and trips nothing, and passes with its cause.
//!
//! The period is 100 ms: that of the samples of the GPUs, and that of the readings of an engine.

mod page;
mod traffic;
mod world;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use headgate_tests::documents::{document, spec};
use serde_json::{Value, json};

use self::page::Says;
use self::world::{PERIOD, SLACK, World, are_gpus, engine, gpu, is_calm, memory_level, pool};

const HOUR_S: i64 = 3600;
/// Limits of this age begin to decay.
const LIMITS_TTL_MS: u64 = 3000;

/// The level of GPU memory has no signal any more, and overload control, where the pool has it, none of the engines.
fn has_left(status: &Value, name: &str) -> bool {
    let of_engines = &pool(status, name)["overload"]["measured"]["engine_queue"]["value"];
    memory_level(status, name)["state"] == "stale" && of_engines.is_null()
}

/// Whether `line` begins with a time of the hour that it is `ahead_s` seconds from now, or was a minute ago.
fn is_hour(line: &str, ahead_s: i64) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()).cast_signed();
    let hour = |at: i64| format!("T{:02}:", at.rem_euclid(24 * HOUR_S) / HOUR_S);
    [now, now - 60].into_iter().any(|now| line.get(10..14) == Some(&hour(now + ahead_s)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_stands_still_or_is_killed_makes_its_gpus_stale() -> Result<()> {
    let mut world = World::start().await?;
    let are_stale = |status: &Value| are_gpus(status, "stale") && has_left(status, "plain") && engine(status)["state"] == "ok";
    world.agent.freeze()?;
    world.soon("GPUs of an agent that stands still: stale", are_stale).await?;
    world.traffic.more(50).await?;
    world.agent.thaw()?;
    world.soon("GPUs of an agent that goes on: ok", is_calm).await?;
    world.agent.kill_9()?;
    world.soon("GPUs of an agent that was killed: stale", are_stale).await?;
    world.traffic.more(50).await?;
    world.restart_agent()?;
    world.end(0).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figures_that_cannot_be_constant_and_are_leave_the_decision() -> Result<()> {
    let mut world = World::start().await?;
    // What is learned takes 30 changes. The period is the longest time that the figures have stood still, on a busy machine two samples.
    world.stays("calm", 30 * PERIOD, is_calm).await?;
    world.gpus.stand_still();
    let are_frozen = |status: &Value| are_gpus(status, "frozen") && has_left(status, "plain");
    world.becomes("GPUs whose figures stand still: frozen", 3 * 2 * PERIOD + SLACK, are_frozen).await?;
    world.traffic.more(50).await?;
    world.gpus.wander(&[]);
    world.soon("GPUs whose figures move again: ok", is_calm).await?;

    world.page.say(Says::TheSame);
    let is_frozen = |status: &Value| engine(status)["state"] == "frozen" && has_left(status, "chat") && are_gpus(status, "ok");
    world.soon("an engine whose page stands still: frozen", is_frozen).await?;
    world.traffic.more(50).await?;
    world.page.say(Says::Now);
    world.soon("an engine whose page moves again: ok", is_calm).await?;
    world.end(0).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_calendar_that_steps_by_an_hour_changes_nothing() -> Result<()> {
    let mut world = World::start().await?;
    for (n, step_s) in [HOUR_S, -HOUR_S, 0].into_iter().enumerate() {
        world.calendar.step_to(step_s)?;
        world.stays("calm", 5 * PERIOD, is_calm).await?;
        let epoch = pool(&world.control.status().await?, "plain")["epoch"].clone();
        // Policies and limits go their way: another policy is in force in the proxy, with limits of its own.
        let mut other = spec();
        (other["pool"], other["routes"]) = (json!(format!("other-{n}")), json!([{"pathPrefix": format!("/other-{n}/")}]));
        world.control.apply(&document(&format!("other-{n}"), &other))?;
        world
            .becomes("another policy in force", Duration::from_secs(5), |status| {
                let policies = status["proxies"][0]["policies"].as_array();
                policies.is_some_and(|policies| policies.len() == 3 + n)
            })
            .await?;
        world.becomes("newer limits", Duration::from_secs(5), |status| pool(status, "plain")["epoch"].as_u64() > epoch.as_u64()).await?;
        world.traffic.more(50).await?;
        let oldest = world.oldest_limits_ms().await?;
        ensure!(oldest < LIMITS_TTL_MS, "limits are {oldest} ms old");
        let control = world.control.process().log();
        for shown in [world.envoy.access_log().pop().as_deref(), control.lines().last()] {
            ensure!(shown.is_some_and(|line| is_hour(line, step_s)), "stepped by {step_s} s: {shown:?}");
        }
    }
    world.end(0).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gpu_that_is_lost_is_ejected_and_the_other_carries_on() -> Result<()> {
    let mut world = World::start().await?;
    world.gpus.wander(&[0]);
    let status = world
        .soon("a GPU that is lost: ejected", |status| {
            gpu(status, 0)["state"] == "lost"
                && gpu(status, 0)["verdict"] == "ejected"
                && gpu(status, 1)["state"] == "ok"
                && pool(status, "plain")["gpu_capacity"] == 0.5
                && memory_level(status, "plain")["state"] == "ok"
                && memory_level(status, "plain")["value"].as_f64().map(f64::round) == Some(20.0)
        })
        .await?;
    ensure!(gpu(&status, 0)["verdict_reason"].as_str().is_some_and(|reason| reason.contains("lost")), "{}", gpu(&status, 0));
    ensure!(pool(&status, "plain")["gpu_problem"].as_str().is_some_and(|problem| !problem.is_empty()), "{}", pool(&status, "plain"));
    world.traffic.more(100).await?;
    world.gpus.wander(&[]);
    world.end(0).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_restarts_counts_on() -> Result<()> {
    let mut world = World::start().await?;
    let made = |status: &Value| engine(status)["output_tokens"].as_u64();
    let before = world.becomes("tokens", PERIOD * 20, |status| made(status) > Some(100)).await?;
    world.engine.kill_9()?;
    world
        .soon("an engine that is gone: failing", |status| {
            engine(status)["state"] == "failing" && has_left(status, "chat") && are_gpus(status, "ok")
        })
        .await?;
    world.engine.restart().await?;
    // It is asked again after 0.1 s, and twice as long after each failure from the fourth on: within the time that it was gone.
    let back = world
        .becomes("an engine that is back: ok, with a restart", 20 * PERIOD, |status| is_calm(status) && engine(status)["restarts"] == 1);
    let back = back.await?;
    ensure!(made(&back) >= made(&before), "tokens fell from {:?} to {:?}", made(&before), made(&back));
    world.traffic.everybody().await?;
    let broken = world.traffic.broken();
    world.end(broken).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_100_mib_of_garbage_is_not_believed_and_costs_little() -> Result<()> {
    let mut world = World::start().await?;
    for (says, most) in [(Says::GarbageFast, 100 << 20), (Says::GarbageSlowly, 1 << 20)] {
        let (taken, before) = (world.page.garbage_taken(), world.control.process().resident_bytes()?);
        world.page.say(says);
        let is_failing = |status: &Value| engine(status)["state"] == "failing" && has_left(status, "chat") && are_gpus(status, "ok");
        let status = world.soon(&format!("an engine that says {says:?}: failing"), is_failing).await?;
        ensure!(engine(&status)["problem"].as_str().is_some_and(|problem| !problem.is_empty()), "{}", engine(&status));
        world.stays("failing", 10 * PERIOD, is_failing).await?;
        world.traffic.more(50).await?;
        let (taken, now) = (world.page.garbage_taken() - taken, world.control.process().resident_bytes()?);
        println!("{says:?}: {} KiB taken, resident memory {} KiB before and {} KiB after", taken >> 10, before >> 10, now >> 10);
        ensure!(taken <= most, "{taken} bytes of garbage were taken");
        ensure!(now < before + (32 << 20), "resident memory grew from {before} to {now} bytes");
        world.page.say(Says::Now);
        world.becomes("an engine that says sense: ok", 30 * PERIOD, is_calm).await?;
    }
    world.end(0).await
}
