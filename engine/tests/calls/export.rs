//! Exports that are called through somebody else's bindings, here none: by name, with dynamic values.

use std::time::Duration;

use engine::invoke::Error;
use engine::wasmtime::component::Val;
use engine::{Config, Engine, Reuse, Runnable};

use crate::host::{config, engine, entry, grant, start};

async fn messenger(config: Config, reuse: Reuse) -> (Engine, Runnable) {
    let mut grant = grant("export");
    let mut declared = entry("messaging", &["consumer", "handler"], &[]).to_vec();
    for entry in &mut declared {
        "wasmcloud".clone_into(&mut entry.namespace);
    }
    (grant.declared, grant.reuse) = (declared.into(), reuse);
    let engine = engine(config);
    let guest = start(&engine, "messenger", grant).await;
    (engine, guest)
}

/// Calls `function` of the messaging handler with a message, as a trigger might.
async fn handle(guest: &Runnable, function: &'static str, body: &str) -> Result<Val, Error> {
    let body = body.bytes().map(Val::U8).collect();
    let call = guest.call_export(|mut store, instance| {
        Box::pin(async move {
            let handler = "wasmcloud:messaging/handler@0.2.0";
            let handler = instance.get_export_index(&mut store, None, handler);
            let function = instance.get_export_index(&mut store, handler.as_ref(), function);
            let function = function.and_then(|index| instance.get_func(&mut store, index));
            let function = function.ok_or_else(|| std::io::Error::other("no such function"))?;
            let message = Val::Record(vec![
                ("subject".to_owned(), Val::String("a".to_owned())),
                ("body".to_owned(), Val::List(body)),
                ("reply-to".to_owned(), Val::Option(None)),
            ]);
            let mut results = [Val::Bool(false)];
            function
                .call_async(&mut store, &[message], &mut results)
                .await?;
            let [result] = results;
            Ok(result)
        })
    });
    call.await
}

#[tokio::test]
async fn what_a_guest_returns_is_what_the_call_gives() {
    let (_, guest) = messenger(config(), Reuse::NEVER).await;
    let ok = handle(&guest, "handle-message", "x").await.unwrap();
    assert_eq!(ok, Val::Result(Ok(None)));
    let refused = handle(&guest, "handle-message", "err").await.unwrap();
    let Val::Result(Err(Some(why))) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(*why, Val::String("asked to fail".to_owned()));
    let trap = handle(&guest, "handle-message", "trap").await;
    assert!(
        matches!(&trap, Err(Error::Trap(why)) if why.contains("unreachable")),
        "{trap:?}"
    );
    let absent = handle(&guest, "handle-nothing", "").await;
    assert!(
        matches!(&absent, Err(Error::Trap(why)) if why.contains("no such function")),
        "{absent:?}"
    );
}

#[tokio::test]
async fn a_call_is_bounded_in_cpu_and_wall_time() {
    let short = Duration::from_millis(100);
    for (config, expected) in [
        (
            Config {
                call_cpu_max: short,
                ..config()
            },
            Error::CpuExceeded(short),
        ),
        (
            Config {
                call_time_max: short,
                ..config()
            },
            Error::Timeout(short),
        ),
    ] {
        let (_, guest) = messenger(config, Reuse::NEVER).await;
        let ended = handle(&guest, "handle-message", "loop").await;
        assert_eq!(ended.unwrap_err(), expected);
        assert!(handle(&guest, "handle-message", "x").await.is_ok());
    }
}

#[tokio::test]
async fn an_instance_is_used_again_unless_it_trapped() {
    let reuse = Reuse {
        instances_max: 1,
        calls_max: 10,
        age_max: Duration::from_secs(60),
    };
    let (engine, guest) = messenger(config(), reuse).await;
    let live = || engine.instances().live;
    handle(&guest, "handle-message", "x").await.unwrap();
    assert_eq!(live(), 1, "it waits for the next call");
    handle(&guest, "handle-message", "x").await.unwrap();
    assert_eq!(live(), 1);
    handle(&guest, "handle-message", "trap").await.unwrap_err();
    assert_eq!(live(), 0, "what has trapped is gone");
}
