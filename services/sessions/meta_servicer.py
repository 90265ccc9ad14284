"""Owns the rpcs of discovery: unpack, call, pack."""

from __future__ import annotations

from typing import Any, Final

from google.api.httpbody_pb2 import HttpBody
from grpc.aio import ServicerContext
from satchel.sessions.v1 import meta_pb2 as pb
from satchel.sessions.v1 import meta_pb2_grpc as pb_grpc

from runtime.caching import answer_if_new, unless_known
from services.sessions import meta_convert as convert
from services.sessions.meta_domain import AppVersions, Discovery

# Seconds after which a version that was just forced is known to every app that asks.
APP_VERSION_MAX_AGE: Final = 60

Context = ServicerContext[Any, Any]


class MetaServicer(pb_grpc.MetaServiceServicer):
    """satchel.sessions.v1.MetaService."""

    def __init__(self, discovery: Discovery, app_versions: AppVersions) -> None:
        self._discovery = discovery
        self._app_versions = app_versions

    async def ListSchemas(self, request: pb.ListSchemasRequest, context: Context) -> HttpBody:
        document = self._discovery.all()
        return unless_known(document.content, tag=document.tag)

    async def GetSchema(self, request: pb.GetSchemaRequest, context: Context) -> HttpBody:
        document = self._discovery.one(request.domain)
        return unless_known(document.content, tag=document.tag)

    async def GetAppVersion(self, request: pb.GetAppVersionRequest, context: Context) -> pb.GetAppVersionResponse:
        return answer_if_new(
            convert.standing_response(await self._app_versions.standing(request.platform, request.version)),
            max_age=APP_VERSION_MAX_AGE,
        )

    async def UpdateAppVersion(
        self, request: pb.UpdateAppVersionRequest, context: Context
    ) -> pb.UpdateAppVersionResponse:
        app = await self._app_versions.set(
            request.platform,
            request.latest_version,
            request.min_supported_version,
            request.store_url,
            force=request.force,
        )
        return convert.app_version_response(app)
