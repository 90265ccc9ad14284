"""Owns the table of app versions and every query on it."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy import bindparam
from sqlalchemy.dialects import postgresql

from runtime.database import Database
from services.sessions.meta_domain import AppVersion

app_versions: Final = sa.Table(
    "app_versions",
    sa.MetaData(schema="sessions"),
    sa.Column("platform", sa.Text, primary_key=True),
    sa.Column("latest_version", sa.Text),
    sa.Column("min_supported_version", sa.Text),
    sa.Column("store_url", sa.Text),
    sa.Column("update_time", sa.DateTime(timezone=True)),
    sa.Column("force", sa.Boolean),
)

_GET: Final = sa.select(*app_versions.c).where(app_versions.c.platform == bindparam("platform"))
_given: Final = postgresql.insert(app_versions).values(
    {column.name: bindparam(column.name) for column in app_versions.c}
)
_SET: Final = _given.on_conflict_do_update(
    index_elements=["platform"],
    set_={
        name: _given.excluded[name]
        for name in ("latest_version", "min_supported_version", "store_url", "update_time", "force")
    },
)


class AppVersionStore:
    """App versions in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, platform: str) -> AppVersion | None:
        """What there is for the platform; None when nothing was set."""
        async with self._database.statements() as statements:
            row = await statements.one(_GET, platform=platform)
        if row is None:
            return None
        return AppVersion(
            platform=row["platform"],
            latest=row["latest_version"],
            minimum=row["min_supported_version"],
            store_url=row["store_url"],
            force=row["force"],
            update_time=row["update_time"],
        )

    async def set(self, app: AppVersion) -> None:
        """Stores what there is from now on."""
        async with self._database.statements() as statements:
            await statements.execute(
                _SET,
                platform=app.platform,
                latest_version=app.latest,
                min_supported_version=app.minimum,
                store_url=app.store_url,
                update_time=app.update_time,
                force=app.force,
            )
