//! The files that users copy, and the list of capabilities that they carry.

use anyhow::{Result, ensure};
use headgate_protos::plugin::CAPABILITIES;
use headgate_test_support::artefact::{Module, workspace_root};
use headgate_test_support::wasm_module::Interface;
use headgate_test_support::{EnvoyVersion, user_files};

pub(crate) async fn bootstraps_for_users_are_valid(version: EnvoyVersion) -> Result<()> {
    let bootstraps = user_files::bootstraps()?;
    ensure!(bootstraps.len() >= 4, "inline, ECDS with and without TLS, and compose are there: {bootstraps:?}");
    for bootstrap in bootstraps {
        user_files::validate(&version, &bootstrap)?;
    }
    Ok(())
}

#[test]
fn every_capability_list_is_what_the_module_uses() -> Result<()> {
    let used = Interface::read(&Module::Headgate.path()?)?.capabilities();
    let listed: Vec<String> = CAPABILITIES.iter().map(|&name| name.to_owned()).collect();
    assert_eq!(used, listed, "CAPABILITIES and the module differ");
    for file in
        ["envoy/inline.yaml", "envoy/ecds.yaml", "envoy/ecds-mtls.yaml", "examples/compose/envoy.yaml", "examples/istio/envoyfilter.yaml"]
    {
        let text = std::fs::read_to_string(workspace_root().join(file))?;
        let missing: Vec<&String> = used.iter().filter(|name| !text.contains(name.as_str())).collect();
        ensure!(missing.is_empty(), "{file} does not list {missing:?}");
    }
    Ok(())
}

#[test]
fn module_is_at_most_500_kib() -> Result<()> {
    let size = std::fs::metadata(Module::Headgate.path()?)?.len();
    ensure!(size <= 500 * 1024, "headgate.wasm has {size} bytes");
    Ok(())
}
