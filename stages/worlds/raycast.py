"""Frames by casting one ray per pixel: no OpenGL, and the same bits for the same state and MuJoCo build.

Most of a frame is floor and sky, and both follow from the camera alone. So only the pixels inside the
projected bounding box of a geom are cast (mujoco.mj_multiRay); the floor is intersected in closed form
and the sky is looked up. Shading is element by element, in operations whose results IEEE arithmetic fixes
to the bit; a BLAS product, which may differ from one processor to the next, only decides what to cast.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.worlds.suite import mujoco

AMBIENT, HEADLIGHT, SKYLIGHT = 0.45, 0.65, 0.22  # white light: everywhere, along the camera's axis, from above
FLOOR_COLORS = ((0.1, 0.2, 0.3), (0.2, 0.3, 0.4))  # the suite's checker
SQUARE = 1.0  # m, side of a checker square
SKY_HORIZON, SKY_SLOPE = (0.2, 0.3, 0.4), 0.87  # colour at eye level; its relative change from there to straight up
VISIBLE_GROUPS = np.array([1, 1, 1, 0, 0, 0], np.uint8)  # MuJoCo's default view
UNSET_RGBA = np.array([0.5, 0.5, 0.5, 1], np.float32)  # a geom with this colour takes its material's
CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)


@dataclass(frozen=True)
class Rays:
    """What follows from camera orientation and image size alone; P = size * size pixels, row by row."""

    direction: np.ndarray  # (P, 3) float64, unit, world frame
    backward: np.ndarray  # (3,) unit, from the scene to the camera
    floor_dx: np.ndarray  # (P,) floor hit per metre of camera height, from the point below the camera
    floor_dy: np.ndarray  # (P,)
    downward: np.ndarray  # (P,) bool
    floor_light: float
    floor_width: np.ndarray  # (P,) pixel's footprint on the floor per metre of camera height, in squares
    sky: np.ndarray  # (3, P) float32, 0..255


class RayCaster:
    """Draws a model whose one plane is a horizontal floor at z = 0. `camera` is a camera's index."""

    def __init__(self, model: mujoco.MjModel, size: int, camera: int) -> None:
        self.model, self.size, self.camera = model, size, camera
        self.data = mujoco.MjData(model)
        self.tangent = float(np.tan(np.deg2rad(model.cam_fovy[camera]) / 2))
        self.floor = int(np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE)[0])
        shown = (VISIBLE_GROUPS[model.geom_group] == 1) & (np.arange(model.ngeom) != self.floor)
        self.shown = np.flatnonzero(shown)
        box = model.geom_aabb[self.shown]  # (G, 6): centre, half sizes, in the geom's frame
        self.corners = box[:, None, :3] + CORNERS * box[:, None, 3:]  # (G, 8, 3)
        self.colors = np.ascontiguousarray(geom_colors(model).T) * 255  # (3, geoms)
        self.orientation = np.zeros(9)
        self.rays: Rays

    def __call__(self, qpos: np.ndarray) -> np.ndarray:
        """(nq,) positions → (3, size, size) uint8."""
        model, data = self.model, self.data
        data.qpos[:] = qpos
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)  # tracking cameras follow the centre of mass
        mujoco.mj_camlight(model, data)
        matrix, origin = data.cam_xmat[self.camera], data.cam_xpos[self.camera].copy()
        if not np.array_equal(matrix, self.orientation):
            self.orientation = matrix.copy()
            self.rays = make_rays(self.size, self.tangent, matrix.reshape(3, 3))
        image = self._background(origin)  # (3, P)
        pixels = self._candidates(origin, matrix.reshape(3, 3))  # (n,)
        if len(pixels):
            self._draw_bodies(image, origin, pixels)
        return (np.minimum(image, 255) + 0.5).astype(np.uint8).reshape(3, self.size, self.size)

    def _background(self, origin: np.ndarray) -> np.ndarray:
        """Checker floor where a ray goes down onto it, sky elsewhere. → (3, P) float32."""
        rays, height = self.rays, float(origin[2])
        if height <= 0:
            return rays.sky.copy()
        x, y = origin[0] + height * rays.floor_dx, origin[1] + height * rays.floor_dy  # (P,)
        centre, half = self.model.geom_pos[self.floor], self.model.geom_size[self.floor]
        on_floor = rays.downward & (np.abs(x - centre[0]) <= half[0]) & (np.abs(y - centre[1]) <= half[1])
        # MuJoCo lays the checker from the plane's left far corner
        column = np.floor((x - (centre[0] - half[0])) / SQUARE).astype(np.int32)
        row = np.floor((centre[1] + half[1] - y) / SQUARE).astype(np.int32)
        odd = column + row & 1
        # squares narrower than a pixel fade to their mean instead of flickering
        sharp = np.maximum(np.float32(1) - rays.floor_width * np.float32(height), 0)
        mix = (odd.astype(np.float32) - np.float32(0.5)) * sharp + np.float32(0.5)
        dark, bright = np.array(FLOOR_COLORS, np.float32)[:, :, None] * np.float32(255 * rays.floor_light)  # (3, 1)
        return np.where(on_floor, dark + (bright - dark) * mix, rays.sky)

    def _candidates(self, origin: np.ndarray, camera: np.ndarray) -> np.ndarray:
        """Pixels inside the projected bounding box of any geom, one pixel wider on each side."""
        data, size = self.data, self.size
        turn = data.geom_xmat[self.shown].reshape(-1, 3, 3)  # (G, 3, 3)
        world = self.corners @ turn.swapaxes(1, 2) + data.geom_xpos[self.shown, None]  # (G, 8, 3)
        seen = (world - origin) @ camera  # (G, 8, 3) in the camera's frame, which looks along -z
        depth = -seen[..., 2]
        behind = depth.min(1) <= 0.01  # a box that reaches the camera may cover any pixel
        scale = size / (2 * self.tangent) / np.maximum(depth, 0.01)
        u, v = size / 2 + seen[..., 0] * scale, size / 2 - seen[..., 1] * scale  # (G, 8)
        bounds = np.stack([v.min(1) - 1, v.max(1) + 2, u.min(1) - 1, u.max(1) + 2], 1)  # (G, 4)
        bounds[behind] = (0, size, 0, size)
        bounds[depth.max(1) <= 0] = 0
        mask = np.zeros((size, size), bool)
        for top, bottom, left, right in np.clip(bounds, 0, size).astype(int).tolist():
            mask[top:bottom, left:right] = True
        return np.flatnonzero(mask)

    def _draw_bodies(self, image: np.ndarray, origin: np.ndarray, pixels: np.ndarray) -> None:
        """Cast the rays of `pixels` and paint those that hit a body into `image`, in place."""
        n = len(pixels)
        direction = self.rays.direction[pixels]  # (n, 3)
        geom, distance, normal = np.empty(n, np.int32), np.empty(n), np.empty(n * 3)
        mujoco.mj_multiRay(
            self.model, self.data, origin, direction.ravel(), VISIBLE_GROUPS, True, -1,
            geom, distance, normal, n, mujoco.mjMAXVAL,
        )  # fmt: skip
        hit = np.flatnonzero((geom >= 0) & (geom != self.floor))
        b, normals = self.rays.backward, normal.reshape(n, 3)[hit].T  # (3,), (3, hits)
        facing = b[0] * normals[0] + b[1] * normals[1] + b[2] * normals[2]
        light = AMBIENT + HEADLIGHT * np.maximum(facing, 0) + SKYLIGHT * np.maximum(normals[2], 0)
        image[:, pixels[hit]] = self.colors[:, geom[hit]] * light.astype(np.float32)


def make_rays(size: int, tangent: float, camera: np.ndarray) -> Rays:
    """Rays through the pixel centres of a square image, `tangent` of half the field of view."""
    grid = ((np.arange(size) + 0.5) / size * 2 - 1) * tangent
    right, down = np.broadcast_arrays(grid[None, :], grid[:, None])
    right, down = right.ravel(), down.ravel()  # (P,)
    length = np.sqrt(right * right + down * down + 1)
    # camera axes are the columns of its matrix: x right, y up, looking along -z
    direction = (right[:, None] * camera[:, 0] - down[:, None] * camera[:, 1] - camera[:, 2]) / length[:, None]
    falling = -direction[:, 2]
    downward = falling > 1e-6
    safe = np.where(downward, falling, 1.0)
    dx, dy = direction[:, 0] / safe, direction[:, 1] / safe
    light = AMBIENT + HEADLIGHT * max(float(camera[2, 2]), 0.0) + SKYLIGHT  # the floor's normal is straight up
    pixel = 2 * tangent / size / (safe * safe)  # longer side of a pixel's footprint per metre of height
    sky = np.array(SKY_HORIZON)[:, None] * 255 * (1 + SKY_SLOPE * direction[:, 2])  # (3, P)
    return Rays(
        direction, camera[:, 2].copy(), dx, dy, downward, light, (pixel / SQUARE).astype(np.float32),
        sky.astype(np.float32),
    )  # fmt: skip


def geom_colors(model: mujoco.MjModel) -> np.ndarray:
    """(geoms, 3) float32 in 0..1: a geom's own colour where it has one, else its material's."""
    colors = model.geom_rgba.astype(np.float32)
    from_material = (model.geom_matid >= 0) & (model.geom_rgba == UNSET_RGBA).all(1)
    colors[from_material] = model.mat_rgba[model.geom_matid[from_material]]
    return np.ascontiguousarray(colors[:, :3])
