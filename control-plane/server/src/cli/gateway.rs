//! `headgate gateway …`: apply, validate, render, get, list, delete.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use headgate_protos::document::gateway::{kind_of, render as document_of};
use headgate_protos::v1;
use headgate_protos::v1::gateway_service_client::GatewayServiceClient;
use serde::Serialize;

use super::connect::{Connection, GrpcArgs};
use super::policy::read_document;
use super::table::{Align, Table};
use super::{CliError, Format, print, print_json};
use crate::config::FilterDelivery;
use crate::document::Violations;
use crate::gateway::{EndpointStates, GatewaySet, documents, render};
use crate::resources::filter_message;

pub(super) const EXAMPLES: &str = "Examples:\n  headgate gateway apply -f gateway.yaml    # several documents, separated by `---`: all or none\n  \
                                   headgate gateway validate -f gateway.yaml\n  \
                                   headgate gateway render -f gateway.yaml --out envoy.pb && envoy -c envoy.pb\n  headgate gateway list\n  \
                                   headgate gateway get Pool llm > llm.yaml";

/// Arguments of `headgate gateway`.
#[derive(Args, Debug)]
pub(super) struct GatewayArgs {
    #[command(subcommand)]
    command: GatewayCommand,
    #[command(flatten)]
    grpc: GrpcArgs,
}

#[derive(Subcommand, Debug)]
enum GatewayCommand {
    /// Create or replace pools, routes and gateways, all or none; when it returns, they are durable
    Apply {
        /// Documents to apply; `-` reads stdin
        #[arg(short, long, value_name = "FILE|-")]
        file: String,
        /// Only say whether the control plane would take them beside what it has
        #[arg(long)]
        dry_run: bool,
    },
    /// Check documents by themselves, without a server; prints every error, one a line
    Validate {
        /// Documents to check; `-` reads stdin
        #[arg(short, long, value_name = "FILE|-")]
        file: String,
    },
    /// Write documents as an Envoy bootstrap (protobuf) that needs no control plane; `envoy --mode validate -c FILE` checks it
    Render {
        /// Documents to render; `-` reads stdin
        #[arg(short, long, value_name = "FILE|-")]
        file: String,
        /// File to write; Envoy knows the format by the ending .pb
        #[arg(short, long, value_name = "FILE.pb")]
        out: PathBuf,
        /// The filter's .wasm file as Envoy sees it; without it the configuration has no filter. It finds a control plane at the cluster
        /// `headgate-control`, if you add one; until then it admits everything
        #[arg(long, value_name = "FILE")]
        filter_wasm: Option<PathBuf>,
    },
    /// Show a resource as a document that can be applied again
    Get {
        /// `Pool`, `Route` or `Gateway`
        kind: String,
        /// Its name
        name: String,
    },
    /// Show all resources, and the state of every endpoint
    List,
    /// Delete a resource that no other one needs; when it returns, the deletion is durable
    Delete {
        /// `Pool`, `Route` or `Gateway`
        kind: String,
        /// Its name
        name: String,
    },
}

#[derive(Serialize)]
struct ChangedJson {
    resources: Vec<ResourceJson>,
    changed: u32,
}

#[derive(Serialize)]
struct ResourceJson {
    kind: &'static str,
    name: String,
    version: String,
}

#[derive(Serialize)]
struct ListJson {
    resources: Vec<ResourceJson>,
    endpoints: Vec<EndpointJson>,
    refusals: Vec<RefusalJson>,
}

#[derive(Serialize)]
struct RefusalJson {
    node_id: String,
    r#type: String,
    name: String,
    error: String,
}

#[derive(Serialize)]
struct EndpointJson {
    pool: String,
    address: String,
    weight: u32,
    out_because: String,
}

/// Runs one subcommand.
pub(super) async fn run(args: GatewayArgs, format: Format) -> Result<(), CliError> {
    match args.command {
        GatewayCommand::Validate { file } => validate(&read_document(&file)?, format),
        GatewayCommand::Render { file, out, filter_wasm } => write_bootstrap(&read_document(&file)?, &out, filter_wasm),
        GatewayCommand::Apply { file, dry_run } => {
            let documents = read_document(&file)?;
            apply(args.grpc.channel().await?, documents, dry_run, format).await
        }
        GatewayCommand::Get { kind, name } => get(args.grpc.channel().await?, &kind, &name, format).await,
        GatewayCommand::List => list(args.grpc.channel().await?, format).await,
        GatewayCommand::Delete { kind, name } => {
            let connection = args.grpc.channel().await?;
            let request = v1::DeleteGatewayRequest { kind: kind.clone(), name: name.clone() };
            let answer = GatewayServiceClient::new(connection.service.clone()).delete_gateway(request).await;
            answer.map_err(|status| connection.error(&status))?;
            match format {
                Format::Json => print_json(&serde_json::json!({ "kind": kind, "name": name, "deleted": true })),
                Format::Text => print(&format!("{kind} {name} deleted")),
            }
        }
    }
}

fn refused(violations: &Violations) -> CliError {
    CliError::Refused(violations.to_string())
}

fn together(text: &str) -> Result<(Vec<v1::GatewayResource>, GatewaySet), CliError> {
    let checked = documents::read(text).map_err(|violations| refused(&violations))?;
    let set = GatewaySet::try_new(&checked).map_err(|violations| refused(&violations))?;
    Ok((checked.iter().map(|checked| checked.wire().clone()).collect(), set))
}

fn validate(text: &str, format: Format) -> Result<(), CliError> {
    let (resources, _) = together(text)?;
    show(&resources, 0, "is valid", format)
}

fn write_bootstrap(text: &str, out: &std::path::Path, filter_wasm: Option<PathBuf>) -> Result<(), CliError> {
    let (_, set) = together(text)?;
    let delivery =
        |wasm| FilterDelivery { wasm, control_cluster: "headgate-control".to_owned(), control_authority: "headgate.local".to_owned() };
    let filter = filter_wasm.map(|wasm| filter_message(&delivery(wasm)));
    let rendered = render(&set, &EndpointStates::default(), &delivery(PathBuf::new()));
    let bytes = rendered.bootstrap(filter.as_ref());
    std::fs::write(out, bytes).map_err(|source| CliError::Io { what: format!("cannot write {}", out.display()), source })?;
    print(&format!("{} written", out.display()))
}

async fn apply(connection: Connection, documents: String, dry_run: bool, format: Format) -> Result<(), CliError> {
    let mut client = GatewayServiceClient::new(connection.service.clone());
    let request = v1::ApplyGatewayRequest { documents, resources: Vec::new() };
    let answer = if dry_run { client.validate_gateway(request).await } else { client.apply_gateway(request).await };
    let v1::ApplyGatewayResponse { resources, changed } = answer.map_err(|status| connection.error(&status))?.into_inner();
    show(&resources, changed, if dry_run { "would be applied" } else { "applied" }, format)
}

fn show(resources: &[v1::GatewayResource], changed: u32, what: &str, format: Format) -> Result<(), CliError> {
    match format {
        Format::Json => print_json(&ChangedJson { resources: resources.iter().map(json_of).collect(), changed }),
        Format::Text => resources
            .iter()
            .try_for_each(|resource| print(&format!("{} {} {what}, version {}", kind_of(resource), resource.name, resource.version))),
    }
}

async fn everything(connection: &Connection) -> Result<v1::ListGatewayResponse, CliError> {
    let answer = GatewayServiceClient::new(connection.service.clone()).list_gateway(v1::ListGatewayRequest {}).await;
    Ok(answer.map_err(|status| connection.error(&status))?.into_inner())
}

async fn get(connection: Connection, kind: &str, name: &str, format: Format) -> Result<(), CliError> {
    let resources = everything(&connection).await?.resources;
    let found = resources.iter().find(|resource| kind_of(resource) == kind && resource.name == name);
    let document = document_of(found.ok_or_else(|| CliError::NotFound(format!("{kind} {name:?} does not exist")))?);
    match format {
        Format::Json => print_json(&document),
        Format::Text => {
            let yaml = serde_yaml_ng::to_string(&document)
                .map_err(|error| CliError::Io { what: "cannot write YAML".to_owned(), source: std::io::Error::other(error) })?;
            print(yaml.trim_end())
        }
    }
}

async fn list(connection: Connection, format: Format) -> Result<(), CliError> {
    let listed = everything(&connection).await?;
    match format {
        Format::Json => print_json(&ListJson::of(listed)),
        Format::Text if listed.resources.is_empty() => print("no gateway resources"),
        Format::Text => print(&text_of(listed)),
    }
}

fn text_of(listed: v1::ListGatewayResponse) -> String {
    let v1::ListGatewayResponse { resources, endpoints, refusals } = listed;
    let mut table = Table::new(&[("KIND", Align::Left), ("NAME", Align::Left), ("VERSION", Align::Left)]);
    for resource in resources {
        table.row(vec![kind_of(&resource).to_owned(), resource.name, resource.version]);
    }
    let columns = [("POOL", Align::Left), ("ENDPOINT", Align::Left), ("WEIGHT", Align::Right), ("OUT BECAUSE", Align::Left)];
    let mut states = Table::new(&columns);
    for status in endpoints {
        states.row(vec![status.pool, status.address, status.weight.to_string(), status.out_because]);
    }
    let mut text = format!("{}\n\n{}", table.render(), states.render());
    if !refusals.is_empty() {
        let mut table = Table::new(&[("REFUSED BY", Align::Left), ("TYPE", Align::Left), ("NAME", Align::Left), ("BECAUSE", Align::Left)]);
        for refusal in refusals {
            table.row(vec![refusal.node_id, refusal.r#type, refusal.name, refusal.error]);
        }
        text.push_str(&format!("\n\n{}", table.render()));
    }
    text
}

// === impl ListJson ===

impl ListJson {
    fn of(listed: v1::ListGatewayResponse) -> Self {
        let endpoint = |status: v1::EndpointStatus| {
            let v1::EndpointStatus { pool, address, weight, out_because } = status;
            EndpointJson { pool, address, weight, out_because }
        };
        let refusal = |refusal: v1::GatewayRefusal| {
            let v1::GatewayRefusal { node_id, r#type, name, error } = refusal;
            RefusalJson { node_id, r#type, name, error }
        };
        Self {
            resources: listed.resources.iter().map(json_of).collect(),
            endpoints: listed.endpoints.into_iter().map(endpoint).collect(),
            refusals: listed.refusals.into_iter().map(refusal).collect(),
        }
    }
}

fn json_of(resource: &v1::GatewayResource) -> ResourceJson {
    ResourceJson { kind: kind_of(resource), name: resource.name.clone(), version: resource.version.clone() }
}
