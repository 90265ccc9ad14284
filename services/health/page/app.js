// Owns how the page is put together: the door, the desk behind it, and who hears of the live stream.

import { showAlerts } from "./alerts.js";
import { Conflicts } from "./conflicts.js";
import { Devices } from "./devices.js";
import { fill, say } from "./elements.js";
import { loadMesh, showMesh } from "./mesh.js";
import { Panel } from "./panel.js";
import { Plots } from "./plots.js";
import { Session } from "./session.js";
import { signInForm } from "./signin.js";
import { Standing } from "./standing.js";
import { Tiles } from "./tiles.js";
import { Uploads } from "./uploads.js";
import { Watch } from "./watch.js";

const MESH_EVERY = 15_000;
const POINTS_EVERY = 30_000;
const HEALTH = { healthy: ["Healthy", "ok"], degraded: ["Degraded", "warning"], critical: ["Critical", "critical"] };

const byId = (id) => document.getElementById(id);
const session = new Session();

if (session.signedIn && session.administrator) openDesk();
else openDoor();

function openDoor() {
  byId("door").hidden = false;
  fill(byId("door-form"), signInForm(session, () => {
    byId("door").hidden = true;
    openDesk();
    byId("main").focus();
  }));
  byId("door-form").querySelector("input").focus();
}

function openDesk() {
  byId("desk").hidden = false;
  say(byId("tenant"), `Tenant ${session.tenant}`);
  say(byId("who"), session.email);
  byId("sign-out").addEventListener("click", async () => {
    watch.stop();
    await session.signOut();
    location.reload();
  });
  askAgain();

  const content = (id) => byId(id).querySelector(".content");
  const tiles = new Tiles(byId("tiles"), byId("counts"));
  const plots = new Plots(content("plots"));
  const devices = new Devices(byId("devices"), session);
  const conflicts = new Conflicts(byId("conflicts"), byId("decision"), session);
  const uploads = new Uploads(byId("uploads"), session);
  const points = new Panel(byId("plots"), {
    every: POINTS_EVERY,
    load: async () => {
      const hours = chosenHours();
      return { hours, found: await session.json(`/api/v1/sync/health/points?hours=${hours}`) };
    },
    show: ({ hours, found }) => plots.show(found, hours),
  });
  const mesh = new Panel(byId("mesh"), { every: MESH_EVERY, load: loadMesh, show: (parts) => showMesh(content("mesh"), parts) });
  const asked = [points, mesh, devices.panel, conflicts.panel, uploads.panel];
  const watch = new Watch(session);
  const standing = new Standing(watch);

  watch.addEventListener("state", ({ detail }) => {
    // What happened meanwhile, the stream does not tell.
    if (standing.show(detail)) asked.forEach((panel) => panel.refresh());
  });
  watch.addEventListener("news", ({ detail }) => {
    const [text, state] = HEALTH[detail.health_status] ?? [detail.health_status, "none"];
    say(byId("health"), text).dataset.state = detail.metrics.total_syncs || detail.alerts.length ? state : "none";
    document.title = detail.alerts.length ? `(${detail.alerts.length}) Satchel` : "Satchel";
    tiles.show(detail, chosenHours());
    showAlerts(content("alerts"), detail.alerts);
    if (!plots.add(detail.points)) points.hint();
    for (const panel of [mesh, devices.panel, conflicts.panel, uploads.panel]) panel.hint();
  });
  for (const choice of document.getElementsByName("hours")) {
    choice.addEventListener("change", () => {
      points.refresh();
      watch.start(chosenHours());
    });
  }
  asked.forEach((panel) => panel.refresh());
  watch.start(chosenHours());
}

/** The dialog that asks for the password again once the sign-in has ended, over all that is shown. */
function askAgain() {
  const dialog = byId("again");
  const user = session.userId;
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  session.addEventListener("ended", () => {
    if (dialog.open) return;
    fill(byId("again-form"), signInForm(session, () => {
      dialog.close();
      if (session.userId !== user) location.reload(); // what is shown is somebody else's
    }));
    dialog.showModal();
    dialog.querySelector("input[type=password]").focus();
  });
}

function chosenHours() {
  return Number(document.querySelector("input[name=hours]:checked").value);
}
