//! `wasmcloud:postgres@0.2.0` as words: rows are a stream, and the database waits for its reader.

use capabilities::report;
use capabilities::sql;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::oneshot;
use wasmtime::StoreContextMut;
use wasmtime::component::{
    Accessor, Destination, FutureReader, HasData, StreamProducer, StreamReader, StreamResult,
    VecBuffer,
};

use super::{Links, Route, size};
use crate::ctx::Ctx;
use crate::under_way::{Turn, UnderWay};
use bindings::named_imports::wasmcloud::postgres::{prepared, query};
use bindings::wasmcloud::postgres::types::{self, DbError, Error, PgValue};

mod bindings {
    wasmtime::component::bindgen!({
        path: "../wit/postgres-0.2",
        world: "wasmcloud:postgres/imports",
        imports: { default: trappable },
        named_imports: {
            "wasmcloud:postgres/query": crate::interface::postgres::Route,
            "wasmcloud:postgres/prepared": crate::interface::postgres::Route,
        },
    });
}

super::values::conversions!(types);

/// Rows that are passed at once, and how many bytes they have, about, without the last.
const ROWS_AT_ONCE: usize = 256;
const BYTES_AT_ONCE: usize = 256 << 10;

/// The fewest things an interface needs of a store.
struct View<'a>(&'a UnderWay);

struct HasView;

impl HasData for HasView {
    type Data<'a> = View<'a>;
}

fn view(ctx: &mut Ctx) -> View<'_> {
    View(ctx.under_way.get_or_insert_default())
}

pub(super) const LINKS: Links = Links {
    types: |functions| types::add_to_linker_instance::<Ctx, HasView>(functions, view),
    query: |functions, route| query::add_to_linker_instance::<Ctx, HasView>(functions, route, view),
    prepared: |functions, route| {
        prepared::add_to_linker_instance::<Ctx, HasView>(functions, route, view)
    },
};

type Wit<T> = wasmtime::Result<Result<T, Error>>;

impl From<sql::Error> for Error {
    fn from(error: sql::Error) -> Self {
        match error {
            sql::Error::Unavailable(_) => Self::ConnectionFailed(report(&error)),
            sql::Error::AccessDenied(_) => Self::AccessDenied,
            sql::Error::InvalidParams(why) => Self::InvalidParams(why),
            sql::Error::InvalidQuery(why) => Self::InvalidQuery(why),
            sql::Error::Failed(report) => {
                let sql::Report {
                    code,
                    severity,
                    message,
                    detail,
                    extras,
                } = *report;
                let extras = extras.into_iter();
                Self::QueryFailed(DbError {
                    code,
                    severity,
                    message,
                    detail,
                    extras: extras.map(|(name, text)| (name.to_owned(), text)).collect(),
                })
            }
            sql::Error::Conversion(why) => Self::ValueConversionFailed(why),
            sql::Error::UnknownStatement => Self::UnknownPreparedStatement,
            sql::Error::Timeout(_) | sql::Error::Busy(_) => Self::Timeout,
            error => Self::Other(report(&error)),
        }
    }
}

/// Waits for the turn of a call, whose parameters are as the database takes them.
async fn begin<T: 'static>(
    accessor: &Accessor<T, HasView>,
    statement: &str,
    params: Vec<PgValue>,
) -> Result<(Vec<sql::Value>, Turn), Error> {
    let under_way = accessor.with(|mut access| access.get().0.clone());
    let values = params.into_iter().enumerate().map(|(index, value)| {
        from_wit(value).map_err(|why| Error::InvalidParams(format!("${}: {why}", index + 1)))
    });
    let values: Vec<_> = values.collect::<Result<_, _>>()?;
    let turn = under_way.begin(size(statement, &values)).await;
    let turn = turn.ok_or_else(|| Error::Other("too much is under way at once".to_owned()))?;
    Ok((values, turn))
}

impl types::Host for View<'_> {}

impl query::Host for View<'_> {}

type Found = (
    Vec<String>,
    StreamReader<Vec<PgValue>>,
    FutureReader<Result<(), Error>>,
);

impl<T: 'static> query::HostWithStore<T> for HasView {
    async fn query(
        accessor: &Accessor<T, Self>,
        route: Route,
        statement: String,
        params: Vec<PgValue>,
    ) -> Wit<Found> {
        let found = async {
            let (params, _turn) = begin(accessor, &statement, params).await?;
            // A row that waits for its guest has its connection, instead of a turn.
            Ok(route.query(&statement, params).await?)
        };
        let found: sql::Rows = match found.await {
            Ok(found) => found,
            Err(error) => return Ok(Err(error)),
        };
        let (sender, done) = oneshot::channel();
        let rows = Rows {
            names: found.columns.clone(),
            rows: found.rows,
            done: Some(sender),
        };
        // Who drops the stream wants no more of it, which is no failure.
        let done = async move { Ok::<_, wasmtime::Error>(done.await.unwrap_or(Ok(()))) };
        accessor.with(|mut access| {
            let rows = StreamReader::new(&mut access, rows)?;
            let done = FutureReader::new(&mut access, done)?;
            Ok(Ok((found.columns, rows, done)))
        })
    }

    async fn query_batch(
        accessor: &Accessor<T, Self>,
        route: Route,
        statements: String,
    ) -> Wit<()> {
        let done = async {
            let (_, _turn) = begin(accessor, &statements, Vec::new()).await?;
            Ok(route.batch(&statements).await?)
        };
        Ok(done.await)
    }
}

impl prepared::Host for View<'_> {}

impl<T: 'static> prepared::HostWithStore<T> for HasView {
    async fn prepare(accessor: &Accessor<T, Self>, route: Route, statement: String) -> Wit<String> {
        let token = async {
            let (_, _turn) = begin(accessor, &statement, Vec::new()).await?;
            Ok(route.prepare(&statement).await?)
        };
        Ok(token.await)
    }

    async fn exec(
        accessor: &Accessor<T, Self>,
        route: Route,
        token: String,
        params: Vec<PgValue>,
    ) -> Wit<u64> {
        let done = async {
            let (params, _turn) = begin(accessor, &token, params).await?;
            Ok(route.execute(&token, params).await?)
        };
        Ok(done.await)
    }
}

/// The stream of a result's rows; how it ended is said apart.
struct Rows {
    names: Vec<String>,
    rows: BoxStream<'static, sql::Result<sql::Row>>,
    done: Option<oneshot::Sender<Result<(), Error>>>,
}

impl Rows {
    fn end(&mut self, how: Result<(), Error>) {
        if let Some(done) = self.done.take() {
            // Who is not interested dropped it.
            let _ = done.send(how);
        }
    }

    /// The values of the next row, and their size; none at the end.
    fn poll_row(&mut self, cx: &mut Context<'_>) -> Poll<Option<(Vec<PgValue>, usize)>> {
        let row = std::task::ready!(self.rows.poll_next_unpin(cx));
        Poll::Ready(match row {
            None => {
                self.end(Ok(()));
                None
            }
            Some(Err(error)) => {
                self.end(Err(error.into()));
                None
            }
            Some(Ok(row)) => {
                let named = row.values.into_iter().zip(&self.names);
                let values = named.map(|(value, name)| {
                    to_wit(value).map_err(|why| format!("column {name}: {why}"))
                });
                match values.collect() {
                    Ok(values) => Some((values, row.bytes)),
                    Err(why) => {
                        self.end(Err(Error::ValueConversionFailed(why)));
                        None
                    }
                }
            }
        })
    }
}

impl<D> StreamProducer<D> for Rows {
    type Item = Vec<PgValue>;
    type Buffer = VecBuffer<Vec<PgValue>>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        mut destination: Destination<'a, Vec<PgValue>, VecBuffer<Vec<PgValue>>>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let this = &mut *self;
        let wanted = destination.remaining(&mut store).unwrap_or(ROWS_AT_ONCE);
        // A read of nothing asks whether there is something; it is not known without taking it.
        if wanted == 0 {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        let (mut rows, mut bytes) = (Vec::new(), 0);
        let ended = loop {
            if rows.len() >= wanted.min(ROWS_AT_ONCE) || bytes >= BYTES_AT_ONCE {
                break false;
            }
            match this.poll_row(cx) {
                Poll::Ready(Some((row, size))) => {
                    bytes += size;
                    rows.push(row);
                }
                Poll::Ready(None) => break true,
                Poll::Pending if !rows.is_empty() => break false,
                Poll::Pending if finish => return Poll::Ready(Ok(StreamResult::Cancelled)),
                Poll::Pending => return Poll::Pending,
            }
        };
        destination.set_buffer(rows.into());
        Poll::Ready(Ok(match ended {
            true => StreamResult::Dropped,
            false => StreamResult::Completed,
        }))
    }
}
